"""What every test starts from."""

import functools
import os
from pathlib import Path
from typing import Any

# Workers of pytest-xdist share the cores: with a thread for each core in each of them, most of the time would
# go into waiting for one another. Read when PyTorch is imported, here and in the processes that tests start.
if workers := int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 0)):
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from mmengine.visualization import Visualizer

import mmhcg  # noqa: F401  provides mmcv's operators, before a test imports MMDetection

# isort: split
from mmengine.config import config, utils
from tiny_run import write_config, write_data

# To find a config by its name, MMEngine reads MMDetection's hundred lists of models each time, for a second.
utils.load = functools.cache(utils.load)

format_code, formatted = getattr(config, 'FormatCode', None), {}


def format_once(code: str, **options: Any) -> tuple[str, bool]:
    """yapf's answer. A run asks for the same text in its log, in its folder and in each checkpoint."""
    if code not in formatted:
        formatted[code] = format_code(code, **options)
    return formatted[code]


if format_code:  # the fork of MMEngine has another way
    config.FormatCode = format_once


def pytest_runtest_setup() -> None:
    """The same random weights in every run, of fixtures too: with some, a gradient is zero by chance."""
    set_random_seed(0)


@pytest.fixture(autouse=True)
def own_settings():
    """MMEngine keeps the scope of the last run, in which the next test would look for types, and its logger,
    which the next run of the same config would write to if it starts in the same second.

    And the tool that goes through the zoo sets the number of threads, on which last digits of sums depend.
    """
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for kept in (DefaultScope, MMLogger, MessageHub, Visualizer):
        kept._instance_dict.clear()


@pytest.fixture(scope='session')
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.py and shapes/, the set that it trains on: three batches an epoch. Read only."""
    folder = tmp_path_factory.mktemp('tiny')
    write_config(folder)
    write_data(folder)
    return folder
