"""The authors' checkpoints into our names and back, and weights written at once or not at all."""

from mmhcg.weights.convert import KINDS, Report, convert_checkpoint, restore_checkpoint
from mmhcg.weights.files import WeightsError, check_new, save_weights

__all__ = [
    'KINDS',
    'Report',
    'WeightsError',
    'check_new',
    'convert_checkpoint',
    'restore_checkpoint',
    'save_weights',
]
