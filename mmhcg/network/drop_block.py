"""DropBlock, which the paper trains its CIFAR networks with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropBlock(nn.Module):
    """Set squares of (N, C, H, W) to zero while training, in each map on its own, and scale up what is left.

    Ghiasi et al., NeurIPS 2018, algorithm 1. torchvision's `DropBlock2d` and MMDetection's do the same for
    odd sizes and refuse even ones; HCGNet's is 2. No parameter, no buffer, no name in a state dict.

    Args:
        block_size: Side of a square.
        probability: That a value is dropped. `DropBlockSchedule` of `mmhcg.runs` sets it while training.
    """

    def __init__(self, block_size: int, probability: float = 0.0) -> None:
        super().__init__()
        if not isinstance(block_size, int) or block_size < 1 or not 0 <= probability < 1:
            raise ValueError(f'no DropBlock of block_size {block_size} with probability {probability}')
        self.block_size = block_size
        self.probability = probability

    def forward(self, feat: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return feat
        size = min(self.block_size, *feat.shape[2:])
        corners = [side - size + 1 for side in feat.shape[2:]]  # squares lie inside the map
        positions = feat.shape[2] * feat.shape[3] / (corners[0] * corners[1])
        seeds = feat.new_empty((*feat.shape[:2], *corners))
        seeds.bernoulli_(self.probability / size**2 * positions)  # the paper's gamma
        dropped = F.max_pool2d(F.pad(seeds, [size - 1] * 4), size, stride=1)
        kept = 1 - dropped
        return feat * kept * (kept.numel() / kept.sum(dtype=torch.float32).clamp(min=1))

    def extra_repr(self) -> str:
        return f'block_size={self.block_size}, probability={self.probability}'
