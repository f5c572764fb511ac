"""MMEngine's CheckpointHook without a moment at which no whole checkpoint is on the disk."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmhcg.runs.preemption import INTERRUPTED
from mmhcg.runs.resuming import point_at


class SafeCheckpointHook(CheckpointHook):
    """CheckpointHook that deletes what it no longer keeps after, not before, the new file is on the disk.

    So there must be room for one more than `max_keep_ckpts`.
    """

    file_backend: Any

    def before_train(self, runner: Runner) -> None:
        """As the parent's, which also deletes what a run could not delete any more when it was killed."""
        super().before_train(runner)
        self.keep_ckpt_ids = deque(getattr(self, 'keep_ckpt_ids', ()))  # the parent's ends at the limit

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            point_at(runner.work_dir, self.last_ckpt)
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(runner.work_dir, INTERRUPTED))
        outdated = []
        while len(self.keep_ckpt_ids) > self.max_keep_ckpts > 0:
            name = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            outdated.append(self.file_backend.join_path(self.out_dir, name))
        self._delete(outdated)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        backend = self.file_backend
        self.file_backend = _DeleteLater(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        info = runner.message_hub.runtime_info.items()
        best = {value for key, value in info if key.startswith('best_ckpt')}
        self._delete(path for path in outdated if path not in best)

    def _delete(self, paths: Iterable[str]) -> None:
        for path in paths if is_main_process() else ():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # of DeepSpeed
                self.file_backend.rmtree(path)


class _DeleteLater:
    """A file backend that only notes what it should delete."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.outdated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.outdated.append(path)

    rmtree = remove
