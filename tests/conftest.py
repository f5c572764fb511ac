"""What every test starts from."""

import pytest
import torch
from mmengine.registry import DefaultScope

import mmhcg  # noqa: F401  provides mmcv's operators, before a test imports MMDetection


@pytest.fixture(autouse=True)
def own_settings():
    """MMEngine keeps the scope of the last run, in which the next test would look for types.

    And the tool that goes through the zoo sets the number of threads, on which last digits of sums depend.
    """
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    DefaultScope._instance_dict.clear()
