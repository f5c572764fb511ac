"""The oracle as a module that can be trained, for `tools/benchmark.py` to measure against."""

from __future__ import annotations

from oracle import Oracle, random_state
from torch import Tensor, nn

FROZEN = (
    'stem',
    'hybridblock1',
    'transition2.conv1_1x1.bn1',
)  # the stem and stage 1 with the norm that emits it


class PlainHCGNet(nn.Module):
    """HCGNet as the paper writes it, in the recipe for COCO: stem and stage 1 frozen, norms in eval mode.

    Args:
        arch: 'b' or 'c'.
    """

    def __init__(self, arch: str) -> None:
        super().__init__()
        state = {name: t.float() for name, t in random_state(arch).items() if t.is_floating_point()}
        self.arch, self.names = arch, list(state)
        self.tensors = nn.ParameterList(
            nn.Parameter(tensor, requires_grad='running' not in name and not name.startswith(FROZEN))
            for name, tensor in state.items()
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """The four stages' features of images (N, 3, H, W)."""
        return Oracle(dict(zip(self.names, self.tensors)), self.arch)(image)
