"""What tests put into a run to disturb it; a config names it as `type='faults.NAME'`."""

from __future__ import annotations

import atexit
import os
import random
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner


class Signal(Hook):
    """Sends a process a signal before an iteration of training, or of validation.

    `restart`: how many times torchrun must have started the run again.
    """

    def __init__(
        self, name: str, iteration: int = -1, val_iteration: int = -1, rank: int = 0, restart: int = 0
    ) -> None:
        self.number = getattr(signal, name)
        self.iteration, self.val_iteration, self.rank = iteration, val_iteration, rank
        self.is_here = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) == restart

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._send(runner, runner.iter == self.iteration)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._send(runner, batch_idx == self.val_iteration)

    def _send(self, runner: Runner, due: bool) -> None:
        if due and runner.rank == self.rank and self.is_here:
            os.kill(os.getpid(), self.number)


class Threads(Hook):
    """Writes the names of the threads that are left when Python ends into the work dir, a file a process."""

    def before_run(self, runner: Runner) -> None:
        # After what is registered later
        atexit.register(write_threads, Path(runner.work_dir, f'{os.getpid()}.threads'))


def write_threads(path: Path) -> None:
    """The names of this process's threads, a line each; of Linux alone."""
    path.write_text(''.join(name.read_text() for name in Path('/proc/self/task').glob('*/comm')))


class DiskFull(Hook):
    """Lets the process write no file of more than some bytes from an iteration on.

    Copies of the checkpoints that are there get names that end in `.before`.
    """

    def __init__(self, size: int, iteration: int) -> None:
        self.size, self.iteration = size, iteration

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.iteration:
            for path in Path(runner.work_dir).glob('*.pth'):
                shutil.copy(path, f'{path}.before')
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


class Progress(Hook):
    """Writes to a pipe, a line each, when an iteration begins and when a checkpoint is about to be written.

    The checkpoints get some MB more, so that writing takes as long as training does.
    """

    priority = 'LOWEST'

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        os.write(self.pipe, f'iter {runner.iter}\n'.encode())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint['ballast'] = torch.zeros(2**21)
        os.write(self.pipe, b'save\n')


class Noise:
    """A transform that changes pictures by Python's and NumPy's random numbers."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        factor = random.uniform(0.8, 1.2) * np.random.uniform(0.8, 1.2)
        results['img'] = (results['img'] * factor).clip(0, 255).astype('uint8')
        return results
