"""Convolution, norm and ReLU of the stem, and what saves memory and passes over maps everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Norm = Callable[[int], nn.Module]  # number of channels -> norm layer
is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # PyTorch before 2.3 has none


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


def pointwise(feat: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1x1 convolution with stride 1: (N, Cin, H, W) and (Cout, Cin, 1, 1) -> (N, Cout, H, W).

    On CPUs it is a matrix product, which is faster, as the convolution there reorders its maps. Those with
    channels last need no reordering, and compilers see to it themselves.
    """
    if feat.device.type != 'cpu' or not feat.is_contiguous() or is_compiling():
        return F.conv2d(feat, weight, bias)
    weights = weight.flatten(1).expand(len(feat), -1, -1)
    return torch.baddbmm(bias[:, None], weights, feat.flatten(2)).unflatten(2, feat.shape[2:])


def recompute(module: nn.Module, function: Callable[..., Any], *maps: Tensor) -> Any:
    """`function(*maps)`, a part of `module`, which keeps nothing but the maps for the backward pass.

    There it runs once more, up to the last tensor that is needed: a last convolution does not. Where norms
    learn, compilers keep what they see fit, for they cannot leave running statistics out of a second run.
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (*maps, *module.parameters()))):
        return function(*maps)
    if not any(m.training and m._buffers for m in module.modules()):
        return checkpoint(function, *maps, use_reentrant=False, preserve_rng_state=False)
    if is_compiling():
        return function(*maps)
    return checkpoint(
        function,
        *maps,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _kept_statistics(module)),
    )


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: running a function once more must not count a batch twice."""
    kept = [(buffer, buffer.clone()) for m in module.modules() if m.training for buffer in m.buffers(False)]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)  # .data, because the backward pass has saved the buffer
