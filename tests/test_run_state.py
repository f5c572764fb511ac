"""What a run takes up of an earlier one: random numbers, and the place in the epoch."""

from __future__ import annotations

import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import IterBasedTrainLoop

from mmhcg.runs.run_state import _seen, random_state, resume_random_state, set_random_state


@pytest.fixture(autouse=True)
def own_numbers():
    """Other tests' random numbers stay as they are."""
    before = random_state()
    yield
    set_random_state(before)


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_each_process_goes_on_with_numbers_of_its_own():
    """The first with those of the checkpoint, the others with new ones, in each of the three generators."""
    saved = random_state()
    expected = draws()
    numbers = {}
    for rank, iteration in [(0, 5), (1, 5), (2, 5), (1, 6), (2, 6)]:
        resume_random_state(saved, SimpleNamespace(rank=rank, seed=3, world_size=3, iter=iteration))
        numbers[rank, iteration] = draws()
    assert numbers[0, 5] == expected
    for generator in zip(*numbers.values()):
        assert len(set(generator)) == len(numbers)
    resume_random_state(saved, SimpleNamespace(rank=2, seed=3, world_size=3, iter=5))
    assert draws() == numbers[2, 5]


@pytest.mark.parametrize(('batches', 'seen'), [(4, 2), (3, 0)])
def test_an_epoch_of_another_length_begins_anew(caplog, batches, seen):
    runner = SimpleNamespace(
        train_loop=None, train_dataloader=range(batches), logger=logging.getLogger('run_state')
    )
    assert _seen(dict(batch=2, batches=4), runner) == seen
    assert ('epochs have 3 batches now and had 4: restarting this epoch' in caplog.text) == (seen == 0)
    assert _seen(dict(batch=0, batches=4), runner) == _seen({}, runner) == 0
    assert len(caplog.records) == (seen == 0)  # at an epoch's beginning nothing is lost


def test_a_loop_over_iterations_has_seen_all_of_them():
    assert _seen({}, SimpleNamespace(train_loop=object.__new__(IterBasedTrainLoop), iter=7)) == 7
