"""HCGNet itself, in PyTorch alone: variants -> layers -> gates -> smg -> trunk, and deploy for inference."""

from mmhcg.network.deploy import deploy
from mmhcg.network.trunk import Trunk
from mmhcg.network.variants import VARIANTS, Variant, get_variant

__all__ = ['VARIANTS', 'Trunk', 'Variant', 'deploy', 'get_variant']
