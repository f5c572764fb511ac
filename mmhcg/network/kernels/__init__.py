"""What dominates on CUDA, as Triton programs: two functions with gradients, and when they are used.

They are used with MMHCG_KERNELS=1 in the environment, or within `enabled()`, for they have run in Triton's
interpreter, and on no GPU yet. Without that, without Triton, on CPUs, for float64, and under compilers (which
fuse for themselves) it runs its plain formulation, which `smg.py` and `gates.py` have beside each call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from math import gcd
from typing import Any, Callable

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mmhcg.network.layers import is_compiling

BLOCK_P = 64  # positions that a program sees at once
PROGRAMS = 512  # to spread sums over: a few for each multiprocessor
observers: list[Callable[[tuple], None]] = []  # are told the arguments of every launch
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


def _launch(name: str, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    from mmhcg.network.kernels import programs

    getattr(programs, name)[grid](*args, **options)
    for observe in observers:
        observe(args)


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


def pooled_sums(feat: Tensor, scale: Tensor, shift: Tensor, rows: Tensor) -> Tensor:
    """What three pools need of X, as in `ExcitedAttentionPool`: b = 0 (forget gate), 1 and 2 (update gate).

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
    return _PooledSums.apply(feat, scale, shift, rows)


class _Squeeze(Function):
    @staticmethod
    def forward(
        ctx: Any, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, clamp: bool, *maps: Tensor
    ) -> Tensor:
        source = _Source(maps, scale, shift)
        out = source.map_like(len(weight), weight.dtype)
        source.product(out, weight[None, None], bias, CLAMP=clamp, RELU=True)
        ctx.save_for_backward(scale, shift, weight, bias, out, *maps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        scale, shift, weight, bias, out, *maps = ctx.saved_tensors
        source = _Source(maps, scale, shift)
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


class _PooledSums(Function):
    @staticmethod
    def forward(ctx: Any, feat: Tensor, scale: Tensor, shift: Tensor, rows: Tensor) -> Tensor:
        source = _Source([feat], scale, shift, pooled=True)
        attention = source.folded(rows[None].expand(len(feat), -1, -1, -1)).softmax(-1)
        out = source.sums(attention, 9).sum(1).view(len(feat), 3, 9, -1)
        ctx.save_for_backward(feat, scale, shift, rows, attention, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        feat, scale, shift, rows, attention, out = ctx.saved_tensors
        source, grad = _Source([feat], scale, shift, pooled=True), grad.contiguous()
        # Of a softmax S: S (g - sum S g), and here sum_p S_p g_p = sum_kc out_kc grad_kc.
        mean = (out * grad).sum((2, 3))
        grad_logits = attention * (source.folded(grad) - mean[..., None])
        grad_rows = source.sums(grad_logits, 9).sum(1).view_as(out).sum(0)
        weights = torch.cat((grad, rows.expand_as(grad)), 2)  # (N, 3, 18, C)
        grad_feat, affine = source.spread(torch.stack((attention, grad_logits), 2), weights)
        return (grad_feat, *affine, grad_rows)


class _Source:
    """Y = max(scale X + shift, floor) as the programs read it; POOLED where the gates do. See `programs`."""

    def __init__(self, maps: Sequence[Tensor], scale: Tensor, shift: Tensor, *, pooled: bool = False) -> None:
        first = maps[0]
        self.batch, _, self.height, self.width = first.shape
        self.size = self.height * self.width
        self.last = first.stride(1) == 1 and first.shape[1] > 1
        self.format = torch.channels_last if self.last else torch.contiguous_format
        maps = [self._readable(map_.to(first.dtype)) for map_ in maps]
        self.channels = tuple(map_.shape[1] for map_ in maps)
        self.total = sum(self.channels)
        rows = tuple(map(self._row, maps))
        self.block = min(64, max(16, 1 << (min(self.channels) - 1).bit_length()))  # of channels
        self.tiles = sum(-(-channels // self.block) for channels in self.channels)
        self.pooled, self.branches, self.maps = pooled, 3 if pooled else 1, maps
        self.read = (tuple(maps), self.channels, rows, scale.contiguous(), shift.contiguous())
        # Of products in float32. The gates' own are of float32 parameters, whatever the map's precision is.
        single = 'tf32' if torch.backends.cuda.matmul.allow_tf32 else 'ieee'
        self.options = dict(
            POOLED=pooled,
            LAST=self.last,
            PRECISION=single if first.dtype == torch.float32 else 'tf32x3',
            ALIGN_P=gcd(16, self.size),
            ALIGN_C=gcd(16, *self.channels, *rows),
            BLOCK_P=BLOCK_P,
            BLOCK_C=self.block,
        )

    def _readable(self, map_: Tensor) -> Tensor:
        """The map itself, if it is a slice of channels of a dense tensor, or else a copy."""
        row, width = self._row(map_), self.width
        planes = (1, width * row, row) if self.last else (self.size, width, 1)
        strides = zip(map_.shape, map_.stride(), (self.size * row, *planes))
        if all(length == 1 or stride == wanted for length, stride, wanted in strides):
            return map_
        return map_.contiguous(memory_format=self.format)

    def _row(self, map_: Tensor) -> int:
        """Number of channels of the tensor that a map is a slice of."""
        if self.batch > 1:
            return map_.stride(0) // self.size
        return map_.stride(3 if self.width > 1 else 2) if self.last else map_.shape[1]

    def map_like(self, channels: int, dtype: torch.dtype) -> Tensor:
        """Room for a map (N, channels, H, W) of the same memory format."""
        shape = (self.batch, channels, self.height, self.width)
        return torch.empty(shape, dtype=dtype, device=self.maps[0].device, memory_format=self.format)

    def product(self, out: Tensor, weight: Tensor, bias: Tensor | None = None, **options: bool) -> None:
        """Write W Y to `out`; weight (N or 1, branches, O, C)."""
        outputs = weight.shape[2]
        block = _block(outputs)
        grid = (-(-outputs // block), -(-self.size // BLOCK_P), self.batch * self.branches)
        _launch(
            'product',
            grid,
            out,
            *self.read,
            *_strided(weight),
            bias,
            self.size,
            outputs,
            self.total,
            self.tiles,
            BLOCK_O=block,
            **{**self.options, 'CLAMP': False, 'RELU': False, **options},
        )

    def folded(self, weight: Tensor) -> Tensor:
        """What nine rows W Y (N, 3, 9, H W) sum up to at each position: (N, 3, H W)."""
        rows = weight.new_empty(self.batch, 3, 9, self.size)
        self.product(rows, weight)
        out = rows.new_empty(self.batch, 3, self.size)
        grid = (-(-self.size // 256), 3 * self.batch)
        _launch('fold', grid, out, rows, self.height, self.width, BLOCK_P=256)
        return out

    def sums(self, weights: Tensor, outputs: int) -> Tensor:
        """D Y^T as (N branches, splits, O, C) in float32, to be summed over splits."""
        block, blocks = _block(outputs), -(-self.size // BLOCK_P)
        programs = self.tiles * -(-outputs // block) * self.batch * self.branches
        blocks_each = -(-blocks // max(1, min(blocks, PROGRAMS // programs)))
        splits = -(-blocks // blocks_each)
        shape = (self.batch * self.branches, splits, outputs, self.total)
        out = weights.new_empty(shape, dtype=torch.float32)
        grid = (self.tiles, -(-outputs // block), len(out) * splits)
        _launch(
            'sums',
            grid,
            out,
            *self.read,
            weights,
            self.size,
            self.width,
            outputs,
            self.total,
            splits,
            blocks_each,
            BLOCK_O=block,
            **self.options,
        )
        return out

    def spread(self, weights: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of X (N, C, H, W), and of scale and shift (2, branches, C); D is `weights`."""
        out = self.map_like(self.total, self.maps[0].dtype)
        blocks, outputs = -(-self.size // BLOCK_P), weight.shape[2]
        shape = (self.batch * blocks, 2, self.branches, self.total)
        affine = weights.new_empty(shape, dtype=torch.float32)
        _launch(
            'spread',
            (blocks, self.tiles, self.batch),
            out,
            affine,
            *self.read,
            *_strided(weight),
            weights,
            self.size,
            self.width,
            outputs,
            self.total,
            BLOCK_O=min(64, _block(outputs)),
            **self.options,
        )
        return out, affine.sum(0)


def _block(outputs: int) -> int:
    return min(128, max(16, 1 << (outputs - 1).bit_length()))


def _strided(weight: Tensor) -> tuple[Tensor, int, int]:
    """Weights (N or 1, branches, O, C), their (O, C) dense, and their first two strides, 0 for 1."""
    if weight.stride()[2:] != (weight.shape[3], 1):
        weight = weight.contiguous()
    return weight, weight.stride(0) * (len(weight) > 1), weight.stride(1)
