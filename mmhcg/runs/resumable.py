"""Data loader and loop that go on in the middle of an epoch, without loading what was trained on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from threading import Thread
from typing import Callable

import torch
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import DataLoader


class ResumableLoader(DataLoader):
    """DataLoader whose next `seen` batches come as None, for no image is looked at.

    MMEngine's loop for iterations asks for as many batches as the run it resumes has seen, and drops them;
    `EpochLoop` does so within an epoch.
    """

    seen = 0

    @classmethod
    def of(cls, loader: DataLoader) -> ResumableLoader:
        """`loader` itself, turned into one."""
        loader._passes = _Passes(loader._index_sampler)
        loader.__class__ = cls  # to build one anew takes arguments that differ between PyTorch's versions
        if loader.generator is None:  # each pass would draw a number that one resumed midway must not draw
            loader.generator = torch.Generator()
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn, os.getpid())
        return loader

    @property
    def _index_sampler(self) -> _Passes:  # where PyTorch's iterators have the batches of indices from
        return self._passes

    def __iter__(self) -> Iterator:
        # A generator: the loop for iterations asks for it when it is built, before `seen` is known, and
        # workers would start to take batches from samplers that never begin again.
        batches = iter(self._passes)
        while self.seen and next(batches, None) is not None:
            self.seen -= 1
            yield None
        self._passes.begun = batches
        iterator = super().__iter__()
        self._passes.begun = None
        yield from iterator


class _Passes:
    """A sampler of batches, of which a pass may have begun already."""

    def __init__(self, sampler: Sequence) -> None:
        self.sampler = sampler
        self.begun: Iterator | None = None

    def __iter__(self) -> Iterator:
        # With workers, PyTorch asks twice for each pass.
        return iter(self.sampler) if self.begun is None else self.begun

    def __len__(self) -> int:
        return len(self.sampler)


def _start_worker(init: Callable[[int], None] | None, run: int, worker_id: int) -> None:
    """Slurm signals every process, and Ctrl-C too: a worker that dies of it takes the run down unsaved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):  # macOS and Windows lack it
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        Thread(target=_end_with, args=(run,), daemon=True).start()
    if init is not None:
        init(worker_id)


def _end_with(run: int) -> None:
    """Die of no SIGTERM but that of process `run`, by which Python ends persistent workers at its exit."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != run:
        pass
    os._exit(0)


class EpochLoop(EpochBasedTrainLoop):
    """EpochBasedTrainLoop that trains on what its loader has left of an epoch."""

    batch = 0  # of this epoch, how many were trained on

    def run_epoch(self) -> None:
        """As the parent's."""
        super().run_epoch()
        self.batch = 0

    def run_iter(self, idx: int, data_batch: Sequence[dict] | None) -> None:
        """As the parent's, but for batches that were seen before the run was interrupted."""
        self.batch = idx + 1
        if data_batch is not None:
            super().run_iter(idx, data_batch)
