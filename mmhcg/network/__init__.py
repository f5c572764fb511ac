"""HCGNet itself, in PyTorch alone: variants -> layers -> gates -> smg -> trunk."""

from mmhcg.network.trunk import Trunk
from mmhcg.network.variants import VARIANTS, Variant, get_variant

__all__ = ['VARIANTS', 'Trunk', 'Variant', 'get_variant']
