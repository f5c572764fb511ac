"""A run that is asked to stop saves first, and says by its exit code that it wants to go on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner

from mmhcg.registry import HOOKS
from mmhcg.runs.processes import leave_group
from mmhcg.runs.resuming import INTERRUPTED, point_at

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: try again later


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On a signal, saves `interrupted.pth` in the work dir after the iteration and exits with code 75.

    A second Ctrl-C stops at once, and saves nothing.

    Several processes stop after the same iteration, whichever got the signal. During validation the first
    one decides alone, since their numbers of batches may differ.

    Args:
        signals: Their names; those that the system lacks are left out.
    """

    priority = 'LOWEST'  # when the iteration has changed all it changes

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1', 'SIGINT')) -> None:
        self.signals = [getattr(signal, name) for name in signals if hasattr(signal, name)]
        self._received: str | None = None
        self._handlers: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Listen; Python lets only the main thread do so."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self.signals:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell has it for what runs with `&`
                self._handlers[number] = signal.signal(number, self._note)

    def leave_train(self, runner: Runner) -> None:
        """Listen no more, whether training ended well or not: called by SafeRunner."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop if any process was told to."""
        if _sums_gradients(runner):
            return
        told = torch.tensor(int(self._received is not None))
        all_reduce(told, 'max')
        if told:
            self._save(runner, epoch=runner.epoch, iter=runner.iter + 1)
            barrier()  # a process that leaves early has the launcher end the one that saves
            leave_group()
            raise SystemExit(EXIT_CODE)

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop if the first process was told to; the validation is repeated on resuming."""
        if self._received and runner.rank == 0 and not _sums_gradients(runner):
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # it has its averages in the model while that is validated
                    hook.after_val_epoch(runner)
            self._save(runner, epoch=runner.epoch, iter=runner.iter, validating=True)
            leave_group(alone=True)
            raise SystemExit(EXIT_CODE)

    def _note(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if self._received == 'SIGINT':
                raise KeyboardInterrupt
            # Not by print, which a signal may interrupt and which must not be entered anew.
            os.write(
                2, b'\nsaving and stopping after this iteration; press Ctrl-C again to stop immediately\n'
            )
        self._received = signal.Signals(number).name

    def _save(self, runner: Runner, **meta: Any) -> None:
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
        path = os.path.join(runner.work_dir, INTERRUPTED)
        if runner.rank == 0:
            point_at(runner.work_dir, path)
        runner.logger.warning(
            f'{self._received or "another process was told to stop"}: saved iteration {meta["iter"]} as '
            f'{path}, from which --resume goes on. Exit code {EXIT_CODE}.'
        )


def _sums_gradients(runner: Runner) -> bool:
    """Whether there are gradients that are not applied yet, which no checkpoint holds."""
    wrapper = runner.optim_wrapper
    return isinstance(wrapper, OptimWrapper) and not wrapper.should_update()
