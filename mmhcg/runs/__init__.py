"""Training and testing runs: what `tools/train.py` and `tools/test.py` call, usable from Python as well."""

from mmhcg.runs.errors import UserError
from mmhcg.runs.launch import test, train

__all__ = ['UserError', 'test', 'train']
