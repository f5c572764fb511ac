"""What dominates on CUDA, as Triton programs: two functions with gradients, and when they are used.

They are used with MMHCG_KERNELS=1 in the environment, or within `enabled()`, for they have run in Triton's
interpreter, and on no GPU yet. Otherwise (no Triton, CPU, float64, `torch.compile`, which fuses by itself)
the network runs the PyTorch operators that `smg.py` and `gates.py` have beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from mmhcg.network.fast import is_compiling
from mmhcg.network.fast.kernels.source import Source

_switch = {'on': os.environ.get('MMHCG_KERNELS') == '1'}


@contextmanager
def enabled(on: bool = True) -> Iterator[None]:
    """Within it, kernels are used where they can be, or none are."""
    before, _switch['on'] = _switch['on'], on
    try:
        yield
    finally:
        _switch['on'] = before


def usable(feat: Tensor) -> bool:
    """Whether the kernels take this map."""
    return (
        _switch['on']
        and not is_compiling()
        and feat.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and _runs_on(feat.device)
    )


@lru_cache
def _runs_on(device: torch.device) -> bool:
    try:
        import triton
    except ImportError:
        return False
    if tuple(map(int, triton.__version__.split('.')[:2])) < (3, 4):  # tuples of tensors
        return False
    if os.environ.get('TRITON_INTERPRET') == '1':
        return device.type == 'cpu'
    return (
        device.type == 'cuda'
        and torch.version.cuda is not None
        and torch.cuda.get_device_capability(device) >= (8, 0)  # bfloat16 and TF32
    )


def squeeze(
    maps: Sequence[Tensor], scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, *, clamp: bool = False
) -> Tensor:
    """ReLU(W Y + bias) with Y = ReLU(scale X + shift), X the concatenation of the maps, which is never made.

    It computes in the precision of autocast, if that is on, and of the maps otherwise. Kept for the backward
    pass: the maps and what it returns.

    Args:
        maps: (N, C_i, H, W) each, C in all.
        scale, shift: (C,); with `clamp`, which has no gradients, the bounds of Y = min(max(X, scale), shift).
        weight: W, (O, C) or (O, C, 1, 1).
        bias: (O,).
    """
    device = maps[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else maps[0].dtype
    return _Squeeze.apply(scale, shift, weight.flatten(1).to(dtype), bias, clamp, *maps)


def pooled_sums(
    feat: Tensor, scale: Tensor, shift: Tensor, rows: Tensor, project: Tensor
) -> tuple[Tensor, Tensor]:
    """What `PooledSums.apply` computes, in float32."""
    sums = branch_sums(feat, *branches(scale, shift, rows, project))
    return sums[:, 1:], sums[:, 0, 4]


def branches(scale: Tensor, shift: Tensor, rows: Tensor, project: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The forget gate as a branch before the update gate's two: scale 1, shift 0, one row in the middle."""
    scale, shift = torch.cat((torch.ones_like(scale[:1]), scale)), F.pad(shift, (0, 0, 1, 0))
    return scale, shift, torch.cat((F.pad(project[None, None], (0, 0, 4, 4)), rows))


def branch_sums(feat: Tensor, scale: Tensor, shift: Tensor, rows: Tensor) -> Tensor:
    """What three pools need of X: b = 0 (forget gate), 1 and 2 (update gate). See `mmhcg.network.attention`.

        Y_b = scale_b X + shift_b, with a ReLU for b > 0
        S_b = softmax over p of sum_k sum_c rows_bkc Y_bc,p-bk
        sums_bkc = sum_q S_b,q+bk Y_bc,q

    b is how far apart the nine positions k of a kernel are. Kept for the backward pass: X and S (N, 3, H W).

    Args:
        feat: X, (N, C, H, W).
        scale, shift: (3, C), float32.
        rows: (3, 9, C), float32.

    Returns:
        (N, 3, 9, C), float32.
    """
    return _BranchSums.apply(feat, scale, shift, rows)


class _Squeeze(Function):
    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, clamp: bool, *maps: Tensor
    ) -> Tensor:
        source = Source(maps, scale, shift)
        out = source.map_like(len(weight), weight.dtype)
        source.product(out, weight[None, None], bias, CLAMP=clamp, RELU=True)
        ctx.save_for_backward(scale, shift, weight, bias, out, *maps)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        _refuse_second_derivatives()
        scale, shift, weight, bias, out, *maps = ctx.saved_tensors
        source = Source(maps, scale, shift)
        grad = torch.ops.aten.threshold_backward(grad.contiguous(memory_format=source.format), out, 0)
        grads: list = [None] * 5
        if any(ctx.needs_input_grad[2:4]):
            grads[2] = source.sums(grad, len(weight)).sum((0, 1)).to(weight.dtype)
            grads[3] = grad.sum((0, 2, 3), dtype=torch.float32).to(bias.dtype)
        grad_maps = [None] * len(maps)
        if any(ctx.needs_input_grad[:2]) or any(ctx.needs_input_grad[5:]):
            grad_feat, affine = source.spread(grad, weight[None, None])
            grads[:2] = (part.view_as(scale).to(scale.dtype) for part in affine)
            grad_maps = grad_feat.split([map_.shape[1] for map_ in maps], 1)
        return (*grads, *grad_maps)


class _BranchSums(Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, scale: Tensor, shift: Tensor, rows: Tensor) -> Tensor:
        source = Source([feat], scale, shift, pooled=True)
        attention = source.folded(rows[None].expand(len(feat), -1, -1, -1)).softmax(-1)
        out = source.sums(attention, 9).sum(1).view(len(feat), 3, 9, -1)
        ctx.save_for_backward(feat, scale, shift, rows, attention)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        _refuse_second_derivatives()
        feat, scale, shift, rows, attention = ctx.saved_tensors
        source, grad = Source([feat], scale, shift, pooled=True), grad.contiguous()
        grad_logits = source.folded(grad)
        grad_logits = attention * (grad_logits - (attention * grad_logits).sum(-1, keepdim=True))
        grad_rows = source.sums(grad_logits, 9).sum(1).view_as(grad).sum(0)
        weights = torch.cat((grad, rows.expand_as(grad)), 2)  # (N, 3, 18, C)
        grad_feat, affine = source.spread(torch.stack((attention, grad_logits), 2), weights)
        return (grad_feat, *affine, grad_rows)


def _refuse_second_derivatives() -> None:
    # Not by `once_differentiable`, whose error `torch.autograd.grad` may pass by.
    if torch.is_grad_enabled():
        raise RuntimeError('the kernels have first derivatives alone: MMHCG_KERNELS=0 for create_graph=True')
