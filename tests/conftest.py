"""What every test starts from."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def own_default_scope():
    """MMEngine keeps the scope of the last run, in which the next test would look for types."""
    yield
    DefaultScope._instance_dict.clear()
