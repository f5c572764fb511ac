"""Maps as the Triton programs read them, and what to launch over them."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import Any, Callable

import torch
from torch import Tensor

BLOCK_P = 64  # positions that a program sees at once
PROGRAMS = 512  # to spread sums over: a few for each multiprocessor
observers: list[Callable[[tuple], None]] = []  # are called with the arguments of every launch


class Source:
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
        # The plain formulation of the gates has matrix products there, that of the squeeze a convolution.
        backend = torch.backends.cuda.matmul if pooled else torch.backends.cudnn
        single = 'tf32' if _allows_tf32(backend) else 'ieee'
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


def _allows_tf32(backend: Any) -> bool:
    """Whether products on `torch.backends.cuda.matmul`, or convolutions on `torch.backends.cudnn`, may."""
    backend = getattr(backend, 'conv', backend)
    precision = getattr(backend, 'fp32_precision', None)  # PyTorch before 2.9 has none; then allow_tf32 warns
    return backend.allow_tf32 if precision is None else precision == 'tf32'


def _block(outputs: int) -> int:
    return min(128, max(16, 1 << (outputs - 1).bit_length()))


def _strided(weight: Tensor) -> tuple[Tensor, int, int]:
    """Weights (N or 1, branches, O, C), their (O, C) dense, and their first two strides, 0 for 1."""
    if weight.stride()[2:] != (weight.shape[3], 1):
        weight = weight.contiguous()
    return weight, weight.stride(0) * (len(weight) > 1), weight.stride(1)


def _launch(name: str, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
    from mmhcg.network.fast.kernels import programs

    with torch.cuda.device_of(args[0]):
        getattr(programs, name)[grid](*args, **options)
    for observe in observers:
        observe(args)
