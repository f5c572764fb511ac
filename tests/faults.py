"""What tests put into a run to disturb it; a config names it as `type='faults.NAME'`."""

from __future__ import annotations

import os
import random
import resource
import signal
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner


class Signal(Hook):
    """Sends the process a signal before an iteration of training, or of validation."""

    def __init__(self, name: str, iteration: int = -1, val_iteration: int = -1, rank: int = 0) -> None:
        self.number = getattr(signal, name)
        self.iteration, self.val_iteration, self.rank = iteration, val_iteration, rank

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._send(runner, runner.iter == self.iteration)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._send(runner, batch_idx == self.val_iteration)

    def _send(self, runner: Runner, due: bool) -> None:
        if due and runner.rank == self.rank:
            os.kill(os.getpid(), self.number)


class DiskFull(Hook):
    """Lets the process write no file of more than some bytes from an iteration on."""

    def __init__(self, size: int, iteration: int) -> None:
        self.size, self.iteration = size, iteration

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.iteration:
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            )


class Noise:
    """A transform that changes pictures by Python's and NumPy's random numbers."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        factor = random.uniform(0.8, 1.2) * np.random.uniform(0.8, 1.2)
        results['img'] = (results['img'] * factor).clip(0, 255).astype('uint8')
        return results
