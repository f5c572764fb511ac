"""MMEngine's Runner for training that goes on after an interruption as if nothing had happened."""

from __future__ import annotations

import logging
import os
from glob import escape, glob
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from mmhcg.runs.checkpoint_hook import SafeCheckpointHook
from mmhcg.runs.config import class_name
from mmhcg.runs.errors import UserError
from mmhcg.runs.lock import sole_run
from mmhcg.runs.resumable import EpochLoop, ResumableLoader
from mmhcg.runs.resuming import point_at, restarts_may_fail, settle_seed, settle_start, was_restarted
from mmhcg.stack.local_files import UNFINISHED


class SafeRunner(Runner):
    """Runner with the hooks of the config's `safe_hooks`, and parts that resume where MMEngine's start over.

    A config selects it by inheriting `configs/_base_/safe_run.py`. What a config sets itself stays: hooks of
    the same class, loops and data loaders of its own.
    """

    # MMEngine's
    _resume: bool
    _load_from: str | None
    _randomness_cfg: dict[str, Any]

    start_is_settled = False  # what to resume, by whoever built this one

    def train(self) -> nn.Module:
        """Train, alone in the work dir.

        Raises:
            UserError: there is nothing to resume, another run has the work dir, or a file cannot be written.
        """
        with sole_run(self.work_dir, self.launcher):
            if not self.start_is_settled:
                self._settle_start()
            if restarts_may_fail():
                self.logger.warning(
                    'torchrun --max-restarts: set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, otherwise restarted '
                    'processes may try to connect to the ones that died'
                )
            if was_restarted() and not self._resume:
                self.logger.warning('restarted before the first checkpoint was saved: starting from scratch')
            if self.rank == 0:
                for leftover in glob(os.path.join(escape(self.work_dir), f'*{UNFINISHED}')):
                    os.remove(leftover)
                if self._resume and self._load_from:
                    point_at(self.work_dir, self._load_from)
            try:
                return super().train()
            finally:
                self.call_hook('leave_train')

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """As the parent's; where the config says `brief_screen`, the long lists go to the file alone."""
        logger = super().build_logger(*args, **kwargs)
        if self.cfg.get('brief_screen'):
            for handler in logger.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(_is_brief)
        return logger

    def _settle_start(self) -> None:
        """Find the checkpoint to resume and take its seed."""
        start = settle_start(self._resume, self._load_from, self.work_dir)
        self._resume, self._load_from = start.resume, start.load_from
        randomness = settle_seed(start, self._randomness_cfg)
        if randomness is not self._randomness_cfg:
            self._randomness_cfg = randomness
            self.set_randomness(**randomness)
        for note in start.notes:
            self.logger.warning(note)

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> DataLoader:
        """As the parent's, and able to begin in the middle of an epoch."""
        loader = Runner.build_dataloader(*args, **kwargs)
        return ResumableLoader.of(loader) if type(loader) is DataLoader else loader

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """As the parent's, and able to begin in the middle of an epoch."""
        if isinstance(loop, dict) and (loop.get('by_epoch') or class_name(loop) == 'EpochBasedTrainLoop'):
            loop = {key: value for key, value in loop.items() if key != 'by_epoch'}
            loop['type'] = EpochLoop
        return super().build_train_loop(loop)

    def register_hooks(
        self, default_hooks: dict[str, Any] | None = None, custom_hooks: list[Any] | None = None
    ) -> None:
        """As the parent's, with SafeCheckpointHook for CheckpointHook and the config's `safe_hooks`."""
        hooks = dict(default_hooks or {})
        checkpoint = hooks.setdefault('checkpoint', {'type': 'CheckpointHook', 'interval': 1})
        if isinstance(checkpoint, dict) and class_name(checkpoint) == 'CheckpointHook':
            hooks['checkpoint'] = {**checkpoint, 'type': SafeCheckpointHook}
        custom = list(custom_hooks or [])
        present = {class_name(hook) for hook in (*hooks.values(), *custom)}
        custom += [hook for hook in self.cfg.get('safe_hooks', []) if class_name(hook) not in present]
        super().register_hooks(hooks, custom)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the parent's; UserError where the disk is full or cannot be written to for another reason."""
        try:
            super().save_checkpoint(*args, **kwargs)
        except OSError as error:
            if error.filename is None:  # of a network, for one
                raise
            raise UserError(
                f'cannot write the checkpoint {error.filename}: {error.strerror}. Earlier checkpoints are as '
                'they were: make room, then go on by --resume'
            ) from error


def _is_brief(record: logging.LogRecord) -> bool:
    """Not the environment, the config or the list of hooks, which MMEngine's Runner logs over many lines."""
    listing = record.filename == 'runner.py' and '\n' in record.getMessage()
    return record.levelno > logging.INFO or not listing
