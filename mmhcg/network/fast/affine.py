"""Norms on running statistics are affine, and so fold into the convolutions before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmhcg.network.fast.onednn import pointwise


def is_affine(norm: nn.Module) -> bool:
    """Whether it is a BatchNorm on its running statistics; others depend on the map in another way."""
    return (
        not norm.training
        and isinstance(norm, _BatchNorm)
        and norm.running_mean is not None
        and norm.weight is not None
    )


def running_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a norm that `is_affine`: norm(x) = scale x + shift.

    In float32 at least, whatever the parameters are in.
    """
    statistics = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, var, weight, bias = map(at_least_float32, statistics)
    scale = weight * torch.rsqrt(var + norm.eps)
    return scale, bias - scale * mean


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the affine norm after it: a (W x) + b = (a W) x + b."""
    scale, shift = running_affine(norm)
    return (conv.weight * scale[:, None, None, None]).to(conv.weight.dtype), shift.to(conv.weight.dtype)


def conv_norm(feat: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """`norm(conv(feat))`, in one pass where the norm is affine."""
    if not is_affine(norm):
        return norm(conv(feat))
    weight, shift = folded(conv, norm)
    if conv.kernel_size == (1, 1):
        return pointwise(feat, weight, shift)
    return F.conv2d(feat, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)
