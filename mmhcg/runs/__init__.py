"""Training and testing runs: what `tools/train.py` and `tools/test.py` call, usable from Python as well."""

from mmhcg.installation import DOCTOR

try:
    from mmhcg.runs.errors import UserError
    from mmhcg.runs.launch import test, train
except ImportError as error:  # every tool comes through here
    raise ImportError(f'{error}. {DOCTOR}') from error

__all__ = ['UserError', 'test', 'train']
