"""HCGNet in place of any MMDetection config's backbone, with every number that came from the old one."""

from mmhcg.swap.old import Level, SwapError, measure_config, measure_levels
from mmhcg.swap.swapping import swap_backbone
from mmhcg.swap.text import check_out, config_text, write_config

__all__ = [
    'Level',
    'SwapError',
    'check_out',
    'config_text',
    'measure_config',
    'measure_levels',
    'swap_backbone',
    'write_config',
]
