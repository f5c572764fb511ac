"""Training and testing runs: what `tools/train.py` and `tools/test.py` call, usable from Python as well."""

from importlib import import_module
from typing import Any

from mmhcg.runs.errors import UserError

__all__ = ['UserError', 'test', 'train']


def __getattr__(name: str) -> Any:
    if name in ('test', 'train'):  # lazily: they need MMEngine
        return getattr(import_module('mmhcg.runs.launch'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
