"""Four Triton programs around Y = max(a X + b, floor), which is computed where it is read, and never stored.

X (N, C, P) is the concatenation of the maps of a block, or one map that the gates look at, with P positions.
With W (O, C) and D (O, P):

    product   W Y                                 what a 1x1 convolution computes
    sums      D Y^T                               the gradient of W; weighted sums over positions
    spread    a [a X + b > floor] (W^T D)         the gradient of X, and its sums that are those of a and b
    fold      l_p = sum_k rows_k,p-k              nine rows, each shifted, in one

A squeeze cell (POOLED false) has one branch with floor 0, and D holds O rows. The gates (POOLED) have three,
z = 3 n + b: the forget gate (b = 0) sees X itself, a floor of -inf; the update gate's pools see Y. There D
holds one map for every nine rows, which are its shifts by b positions: none, 1 and 2 (paper: 3x3 and 5x5).

Maps have their positions side by side, or with LAST their channels; `row` is the number of channels of the
tensor that a map is a slice of. ALIGN_P divides P, and ALIGN_C all numbers of channels: `x // ALIGN * ALIGN`
tells the compiler, which then reads as many values at once. Products are accumulated in float32.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get('TRITON_INTERPRET') == '1')


@triton.jit
def _dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b; in the interpreter in float32, as it takes the bits of bfloat16 for whole numbers."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def _tile(maps, channels, rows, tile, ALIGN_C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The tile-th block of channels, all of one map.

    Returns the map, its row and width, the block's first channel in it, and the map's in the concatenation.
    """
    pointer, row, width = maps[0], rows[0], channels[0]
    start, before = 0, 0
    next_start, next_before = channels[0], tl.cdiv(channels[0], BLOCK_C)
    for i in tl.static_range(1, len(maps)):
        here = tile >= next_before
        pointer = tl.where(here, maps[i], pointer)
        row = tl.where(here, rows[i], row)
        width = tl.where(here, channels[i], width)
        start = tl.where(here, next_start, start)
        before = tl.where(here, next_before, before)
        next_start += channels[i]
        next_before += tl.cdiv(channels[i], BLOCK_C)
    row, width, start = row // ALIGN_C * ALIGN_C, width // ALIGN_C * ALIGN_C, start // ALIGN_C * ALIGN_C
    return pointer, row, width, (tile - before) * BLOCK_C, start


@triton.jit
def _place(n, c, p, row, size, LAST: tl.constexpr):
    """Where channels c and positions p of image n are: (len(c), len(p))."""
    rows, columns = (1, row) if LAST else (size, 1)
    return n * row * size + c[:, None] * rows + p[None, :] * columns


@triton.jit
def _activated(x, scale, shift, place, inside, floor):
    """Y, its a as a column, and where it is not the floor. Beyond the last channel Y is 0 or the floor."""
    a = tl.load(scale + place, mask=inside, other=0)[:, None]
    y = a * x.to(tl.float32) + tl.load(shift + place, mask=inside, other=0)[:, None]
    return tl.maximum(y, floor), a, y > floor


@triton.jit
def _rows(d, z, b, o, p, outputs, size, width, POOLED: tl.constexpr, LAST: tl.constexpr):
    """D at rows o and positions p, (len(o), len(p)). Beyond its rows, and beyond the map, there are zeros."""
    inside = (o < outputs)[:, None] & (p < size)[None, :]
    if POOLED:
        tap, height = o % 9, size // width
        y = (p // width)[None, :] + ((tap // 3 - 1) * b)[:, None]
        x = (p % width)[None, :] + ((tap % 3 - 1) * b)[:, None]
        inside &= (y >= 0) & (y < height) & (x >= 0) & (x < width)
        place = ((z * (outputs // 9) + o // 9) * size)[:, None] + y * width + x
    else:
        place = _place(z, o, p, outputs, size, LAST)
    return tl.load(d + place, mask=inside, other=0)


@triton.jit
def product(
    out,  # (N, O, P), or POOLED (N, 3, O, P)
    maps,
    channels,
    rows,
    scale,  # (branches, C), as is shift; with CLAMP Y = min(max(X, scale), shift)
    shift,
    weight,  # (O, C), (3, O, C) or (N, 3, O, C)
    weight_n,  # its strides
    weight_b,
    bias,  # (O), or None
    size,
    outputs,
    total,  # C
    tiles,
    POOLED: tl.constexpr,
    CLAMP: tl.constexpr,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN_P: tl.constexpr,
    ALIGN_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    BRANCHES: tl.constexpr = 3 if POOLED else 1
    size, total = size // ALIGN_P * ALIGN_P, total // ALIGN_C * ALIGN_C
    z = tl.program_id(2).to(tl.int64)
    n, b = z // BRANCHES, z % BRANCHES
    floor = tl.where(POOLED & (b == 0), float('-inf'), 0.0)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    acc = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for tile in range(tiles):
        pointer, row, width, low, start = _tile(maps, channels, rows, tile, ALIGN_C, BLOCK_C)
        c = low + tl.arange(0, BLOCK_C)
        x_inside = (c < width)[:, None] & (p < size)[None, :]
        x = tl.load(pointer + _place(n, c, p, row, size, LAST), mask=x_inside, other=0)
        if CLAMP:
            lower = tl.load(scale + start + c, mask=c < width, other=0).to(tl.float32)[:, None]
            upper = tl.load(shift + start + c, mask=c < width, other=0).to(tl.float32)[:, None]
            y = tl.minimum(tl.maximum(x.to(tl.float32), lower), upper)
        else:
            y, _, _ = _activated(x, scale, shift, b * total + start + c, c < width, floor)
        place = n * weight_n + b * weight_b + o[:, None] * total + (start + c)[None, :]
        w = tl.load(weight + place, mask=(o < outputs)[:, None] & (c < width)[None, :], other=0)
        acc = _dot(w, y.to(w.dtype), acc, PRECISION)
    if bias is not None:
        acc += tl.load(bias + o, mask=o < outputs, other=0).to(tl.float32)[:, None]
    if RELU:
        acc = tl.maximum(acc, 0)
    place = _place(z, o, p, outputs, size, LAST and not POOLED)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=(o < outputs)[:, None] & (p < size)[None, :])


@triton.jit
def sums(
    out,  # (N * branches, splits, O, C): one of `splits` sums over `blocks` blocks of positions each
    maps,
    channels,
    rows,
    scale,
    shift,
    d,  # (N, O, P), or POOLED (N, 3, O / 9, P)
    size,
    width_p,  # of the map
    outputs,
    total,
    splits,
    blocks,
    POOLED: tl.constexpr,
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN_P: tl.constexpr,
    ALIGN_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    BRANCHES: tl.constexpr = 3 if POOLED else 1
    size, total = size // ALIGN_P * ALIGN_P, total // ALIGN_C * ALIGN_C
    z, split = (tl.program_id(2) // splits).to(tl.int64), tl.program_id(2) % splits
    n, b = z // BRANCHES, z % BRANCHES
    floor = tl.where(POOLED & (b == 0), float('-inf'), 0.0)
    pointer, row, width, low, start = _tile(maps, channels, rows, tl.program_id(0), ALIGN_C, BLOCK_C)
    c = low + tl.arange(0, BLOCK_C)
    o = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    acc = tl.zeros((BLOCK_O, BLOCK_C), tl.float32)
    for block in range(split * blocks, (split + 1) * blocks):
        p = block * BLOCK_P + tl.arange(0, BLOCK_P)
        x_inside = (c < width)[:, None] & (p < size)[None, :]
        x = tl.load(pointer + _place(n, c, p, row, size, LAST), mask=x_inside, other=0)
        y, _, _ = _activated(x, scale, shift, b * total + start + c, c < width, floor)
        rows_d = _rows(d, z, b, o, p, outputs, size, width_p, POOLED, LAST)
        acc = _dot(rows_d, tl.trans(y).to(rows_d.dtype), acc, PRECISION)
    place = ((z * splits + split) * outputs + o)[:, None] * total + (start + c)[None, :]
    tl.store(out + place, acc, mask=(o < outputs)[:, None] & (c < width)[None, :])


@triton.jit
def spread(
    out,  # the gradient of X
    out_affine,  # (N * blocks of positions, 2, branches, C): parts of the gradients of a and b
    maps,
    channels,
    rows,
    scale,
    shift,
    weight,
    weight_n,
    weight_b,
    d,
    size,
    width_p,  # of the map
    outputs,
    total,
    POOLED: tl.constexpr,
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ALIGN_P: tl.constexpr,
    ALIGN_C: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    BRANCHES: tl.constexpr = 3 if POOLED else 1
    size, total = size // ALIGN_P * ALIGN_P, total // ALIGN_C * ALIGN_C
    n = tl.program_id(2).to(tl.int64)
    pointer, row, width, low, start = _tile(maps, channels, rows, tl.program_id(1), ALIGN_C, BLOCK_C)
    c = low + tl.arange(0, BLOCK_C)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    x_inside = (c < width)[:, None] & (p < size)[None, :]
    x = tl.load(pointer + _place(n, c, p, row, size, LAST), mask=x_inside, other=0).to(tl.float32)
    grad = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    part = n * tl.num_programs(0) + tl.program_id(0)
    for b in tl.static_range(BRANCHES):
        floor = float('-inf') if POOLED and b == 0 else 0.0
        _, a, is_open = _activated(x, scale, shift, b * total + start + c, c < width, floor)
        acc = tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
        for block in range(tl.cdiv(outputs, BLOCK_O)):
            o = block * BLOCK_O + tl.arange(0, BLOCK_O)
            w_place = n * weight_n + b * weight_b + o[:, None] * total + (start + c)[None, :]
            w = tl.load(weight + w_place, mask=(o < outputs)[:, None] & (c < width)[None, :], other=0)
            rows_d = _rows(d, n * BRANCHES + b, b, o, p, outputs, size, width_p, POOLED, LAST)
            acc = _dot(tl.trans(w), rows_d.to(w.dtype), acc, PRECISION)
        acc = tl.where(is_open, acc, 0)
        grad += a * acc
        affine_place = (part * 2 * BRANCHES + b) * total + start + c
        tl.store(out_affine + affine_place, tl.sum(acc * x, 1), mask=c < width)
        tl.store(out_affine + affine_place + BRANCHES * total, tl.sum(acc, 1), mask=c < width)
    place = _place(n, start + c, p, total, size, LAST)
    tl.store(out + place, grad.to(out.dtype.element_ty), mask=x_inside)


@triton.jit
def fold(out, rows, height, width, BLOCK_P: tl.constexpr):
    """(N, 3, 9, P) -> (N, 3, P), shifted back by as many positions as `_rows` shifts."""
    z = tl.program_id(1).to(tl.int64)
    b, size = z % 3, height * width
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    acc = tl.zeros((BLOCK_P,), tl.float32)
    for tap in tl.static_range(9):
        y, x = p // width - (tap // 3 - 1) * b, p % width - (tap % 3 - 1) * b
        inside = (p < size) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        acc += tl.load(rows + (z * 9 + tap) * size + y * width + x, mask=inside, other=0)
    tl.store(out + z * size + p, acc, mask=p < size)
