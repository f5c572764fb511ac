"""Stem and stages: from an image to the feature maps that a detector or a classifier reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network.drop_block import DropBlock
from mmhcg.network.fast.onednn import RunChannelsLast
from mmhcg.network.fast.recompute import recompute
from mmhcg.network.layers import ConvNormAct, Norm
from mmhcg.network.smg import dense_module, transition
from mmhcg.network.variants import Variant, get_variant


class Stage(nn.Module):
    """Transition (not in the first stage) with DropBlock after it, hybrid block, norm and ReLU.

    The activated map is both the stage's output and what the next transition reads.
    (N, Cin, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)), stride 1 in the first stage and 2 after it.
    `drop_block` holds DropBlock's options, None for none. Other options are those of `SMG`.
    """

    def __init__(
        self,
        in_channels: int,
        blocks: int,
        growth_rate: int,
        *,
        first: bool,
        norm: Norm,
        drop_block: Mapping | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.transition = None if first else transition(in_channels, norm=norm, **options)
        self.drop_block = None if first or drop_block is None else DropBlock(**drop_block)
        channels = in_channels if first else in_channels // 2
        self.block = nn.ModuleList(
            dense_module(channels + i * growth_rate, growth_rate, norm=norm, **options) for i in range(blocks)
        )
        self.norm = norm(channels + blocks * growth_rate)

    def forward(self, feat: Tensor) -> Tensor:
        maps = [feat if self.transition is None else self.transition(feat)]
        if self.drop_block is not None:
            maps = [self.drop_block(maps[0])]
        for module in self.block:
            maps.append(module(*maps))
        return recompute(self.norm, self._emit, *maps)

    def _emit(self, *maps: Tensor) -> Tensor:
        return F.relu(self.norm(torch.cat(maps, 1)), inplace=True)


def build_stem(variant: Variant, in_channels: int, norm: Norm) -> nn.Module:
    """ImageNet: three 3x3 convolutions and a max-pool, stride 4 in all. CIFAR: one 3x3 convolution."""
    if variant.stem == 'cifar':
        return nn.Conv2d(in_channels, variant.stem_channels, 3, padding=1, bias=False)
    return RunChannelsLast(
        ConvNormAct(in_channels, 32, stride=2, norm=norm),
        ConvNormAct(32, 32, norm=norm),
        ConvNormAct(32, variant.stem_channels, act=False, norm=norm),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.ReLU(inplace=True),  # after the pool, with which it commutes: a quarter of the positions
    )


def _checked(out_indices: Sequence[int], count: int) -> tuple[int, ...]:
    try:
        chosen = [index(i) for i in out_indices]
    except TypeError:
        chosen = []
    if not chosen or chosen != sorted(set(chosen) & set(range(count))):
        raise ValueError(f'out_indices must be ascending whole numbers in 0..{count - 1}, not {out_indices}')
    return tuple(chosen)


class Trunk(nn.Module):
    """HCGNet without a classifier (Yang et al., AAAI 2020, arXiv 1908.09699).

    Args:
        arch: 'a1', 'a2', 'a3' (CIFAR), 'b', 'c' (ImageNet), or a dict with `blocks` and `growth_rates`.
        in_channels: Channels of the image.
        out_indices: Stages to return, from 0; stages after the last of them are not built. None: all.
        norm: Makes the norms on maps (N, C, H, W).
        gate_norm: Makes the norms inside the gates, on (N, C).
        with_cp: Recompute whole SMG modules in the backward pass: less memory, more time.
        drop_block: DropBlock after each transition, e.g. dict(block_size=2), as the paper has it on CIFAR.

    Attributes:
        out_channels: Channels of each returned map.
        out_strides: Stride of each returned map.
    """

    def __init__(
        self,
        arch: str | Mapping = 'b',
        in_channels: int = 3,
        out_indices: Sequence[int] | None = None,
        *,
        norm: Norm = nn.BatchNorm2d,
        gate_norm: Norm = nn.BatchNorm1d,
        with_cp: bool = False,
        drop_block: Mapping | None = None,
    ) -> None:
        super().__init__()
        variant = get_variant(arch)
        count = len(variant.blocks)
        self.out_indices = _checked(range(count) if out_indices is None else out_indices, count)
        self.out_channels = tuple(variant.stage_channels[i] for i in self.out_indices)
        self.out_strides = tuple(variant.stage_strides[i] for i in self.out_indices)

        self.stem = build_stem(variant, in_channels, norm)
        channels = (variant.stem_channels, *variant.stage_channels)
        options: dict[str, Any] = dict(norm=norm, gate_norm=gate_norm, with_cp=with_cp, drop_block=drop_block)
        self.stages = nn.ModuleList(
            Stage(channels[i], variant.blocks[i], variant.growth_rates[i], first=i == 0, **options)
            for i in range(self.out_indices[-1] + 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')  # He et al., 2015

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Map (N, in_channels, H, W) to one map (N, C_i, ceil(H / s_i), ceil(W / s_i)) per out_index."""
        feat, out = self.stem(image), []
        for i, stage in enumerate(self.stages):
            feat = stage(feat)
            if i in self.out_indices:
                out.append(feat)
        return tuple(out)
