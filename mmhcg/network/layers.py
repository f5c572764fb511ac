"""Convolution, norm and ReLU."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmhcg.network.fast.onednn import pointwise

Norm = Callable[[int], nn.Module]  # number of channels -> norm layer


class ConvNormAct(nn.Module):
    """Conv, norm, ReLU: the stem's order. (N, Cin, H, W) -> (N, Cout, ceil(H / stride), ceil(W / stride)).

    Without `act` ReLU is left to what follows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, act: bool = True, norm: Norm
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = norm(out_channels)
        self.act = act

    def forward(self, feat: Tensor) -> Tensor:
        feat = conv_norm(feat, self.conv, self.norm)
        return F.relu(feat, inplace=True) if self.act else feat


class MaxPoolAct(nn.MaxPool2d):
    """Max-pool of ReLU. The two commute, and after the pool there is a quarter of the map."""

    def forward(self, feat: Tensor) -> Tensor:
        return F.relu(super().forward(feat), inplace=True)


def is_affine(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm on its running statistics; others depend on the map in another way."""
    return (
        not norm.training
        and isinstance(norm, _BatchNorm)
        and norm.running_mean is not None
        and norm.weight is not None
    )


def running_affine(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (C,) of a norm that `is_affine`: norm(x) = scale x + shift. None of others."""
    if not is_affine(norm):
        return None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return scale, norm.bias - scale * norm.running_mean


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a convolution with the norm after it, or None: a (W x) + b = (a W) x + b."""
    affine = running_affine(norm)
    return affine and (conv.weight * affine[0][:, None, None, None], affine[1])


def conv_norm(feat: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """`norm(conv(feat))` in one pass where the norm is affine."""
    affine = folded(conv, norm)
    if affine is None:
        return norm(conv(feat))
    weight, shift = affine
    if conv.kernel_size == (1, 1):
        return pointwise(feat, weight, shift)
    return F.conv2d(feat, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
