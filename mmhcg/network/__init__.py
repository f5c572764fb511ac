"""HCGNet itself, in PyTorch alone: variants, layers, attention, gates, smg, trunk; `fast` for speed."""

from mmhcg.network.fast.deploy import deploy
from mmhcg.network.trunk import Trunk
from mmhcg.network.variants import VARIANTS, Variant, get_variant

__all__ = ['VARIANTS', 'Trunk', 'Variant', 'deploy', 'get_variant']
