"""Operators of mmcv that sample a map elsewhere than on its grid, in plain PyTorch on any device.

Names and arguments are those that `mmcv.ops` calls: see `mmcv_ops.py`, which hands these on.

Letters in shapes: N images, K RoIs, C channels, (H, W) map, (P, Q) bins in a RoI.
"""

from itertools import product
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmhcg.stack.calling import full, gradients
from mmhcg.stack.plain_ops import sample_grids

# CARAFE (Wang et al., 2019): `features` (N, C, H, W), `masks` (N, G * k * k, sH, sW) for kernels of k x k
# cells, G groups of channels, and s times the size.


def _carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """Equation 3: each of the results (N, C, sH, sW) is a sum over its source's k x k neighbours."""
    height, width = features.shape[2:]
    near = F.pad(features, [kernel_size // 2] * 4).unflatten(1, (group_size, -1))
    # s * s kernels for each cell of the source
    kernels = F.pixel_unshuffle(masks, scale_factor)
    kernels = kernels.unflatten(1, (group_size, kernel_size, kernel_size, scale_factor**2))
    total = features.new_zeros(*near.shape[:3], scale_factor**2, height, width)  # (N, G, C / G, s * s, H, W)
    for y, x in product(range(kernel_size), repeat=2):
        total += kernels[:, :, y, x, None] * near[..., None, y : y + height, x : x + width]
    return F.pixel_shuffle(total.flatten(1, 3), scale_factor)


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **sizes: int,
) -> None:
    """Features reassembled by the kernels in `masks`, into `output` (N, C, sH, sW)."""
    output.copy_(_carafe(full(features), full(masks), **sizes))
    rfeatures.copy_(features)  # all that mmcv hands to the backward pass


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **sizes: int,
) -> None:
    """Gradients of `carafe_forward` with respect to features and masks."""
    gradients(lambda *x: _carafe(*x, **sizes), (rfeatures, masks), grad_output, (grad_input, grad_masks))


# Convolution at some positions only, `mask_h_idx` and `mask_w_idx` (M,); mmcv multiplies by the weight.


def masked_im2col_forward(
    im: Tensor,
    mask_h_idx: Tensor,
    mask_w_idx: Tensor,
    col: Tensor,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """Write the windows of the image `im` (1, C, H, W) at the positions to `col` (C * h * w, M)."""
    windows = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h)).unfold(1, kernel_h, 1).unfold(2, kernel_w, 1)
    col.copy_(windows[:, mask_h_idx, mask_w_idx].permute(0, 2, 3, 1).reshape(col.shape))  # from (C, M, h, w)


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """Write `col` (C, M) to the positions in the image `im` (1, C, H, W)."""
    im[0][:, mask_h_idx, mask_w_idx] = col


# Deformable RoI pooling (Dai et al., 2017): `rois` (K, 5) are the index of an image in the batch, then x1,
# y1, x2, y2 in the image; `offset` (K, 2, P, Q) moves each bin by x, y in units of `gamma` times the RoI's
# size, or is empty.


def _deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> Tensor:
    """Equation 6, by aligned RoIAlign's samples: the mean of the bilinear ones in each bin, (K, C, P, Q)."""
    bins = (pooled_height, pooled_width)
    start, end = rois[:, [2, 1]] * spatial_scale - 0.5, rois[:, [4, 3]] * spatial_scale - 0.5  # (K, 2): y, x
    step = ((end - start) / rois.new_tensor(bins))[:, None, None]  # (K, 1, 1, 2)
    number = torch.stack(torch.meshgrid(*map(torch.arange, bins), indexing='ij'), -1).to(rois)  # (P, Q, 2)
    corner = start[:, None, None] + number * step  # (K, P, Q, 2)
    if offset.numel():
        corner = corner + gamma * (end - start)[:, None, None] * offset.flip(1).permute(0, 2, 3, 1)

    output = input.new_zeros(len(rois), input.shape[1], *bins)
    for image in rois[:, 0].unique().long().tolist():
        here = (rois[:, 0] == image).nonzero()[:, 0]
        for index, *samples in sample_grids(rois[here], spatial_scale, bins, sampling_ratio, True):
            index = here[index]
            part = torch.cartesian_prod(*((torch.arange(n).to(rois) + 0.5) / n for n in samples))  # (S, 2)
            points = corner[index, :, :, None] + step[index, :, :, None] * part  # (K', P, Q, S, 2)
            output[index] = _bilinear(input[image], points).mean(-1).transpose(0, 1)
    return output


def _bilinear(plane: Tensor, points: Tensor) -> Tensor:
    """Values (C, ...) of `plane` (C, H, W) at `points` (..., 2: y, x); 0 more than a cell outside."""
    size = points.new_tensor(plane.shape[1:])
    grid = ((2 * points + 1) / size - 1).flip(-1).view(1, 1, -1, 2)  # -1 and 1 are the plane's edges
    values = F.grid_sample(plane[None], grid, padding_mode='border', align_corners=False)
    inside = ((points >= -1) & (points <= size)).all(-1)
    return values.view(-1, *inside.shape) * inside


def deform_roi_pool_forward(
    input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, **sizes: Any
) -> None:
    """Mean of each bin, moved by its offset, of the map `input` (N, C, H, W), into `output` (K, C, P, Q)."""
    feat = full(input)
    output.copy_(_deform_roi_pool(feat, rois.to(feat), offset.to(feat), **sizes))


def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    **sizes: Any,
) -> None:
    """Gradients of `deform_roi_pool_forward` with respect to input and offset.

    They are the derivatives. For samples outside the map's outermost cells mmcv's offsets get another one.
    """
    rois = rois.to(full(input))
    tensors, results = [input], [grad_input]
    if offset.numel():
        tensors.append(offset)
        results.append(grad_offset)

    def pool(feat: Tensor, moved: Tensor = offset) -> Tensor:
        return _deform_roi_pool(feat, rois, moved, **sizes)

    gradients(pool, tensors, grad_output, results)


# Multi-scale deformable attention (Zhu et al., 2021). mmcv has it in PyTorch, but on the GPU it calls these.


def _attention(shapes: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """mmcv's own function of value, locations and weights, for levels of `shapes` (L, 2: height, width)."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch  # imports this file

    levels = shapes.tolist()
    return lambda value, *points: multi_scale_deformable_attn_pytorch(value, levels, *points)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Weighted sums (N, queries, heads * C) of `value` (N, keys, heads, C) at the sampling locations.

    `sampling_locations` are (N, queries, heads, levels, points, 2), x, y from 0 to 1, and
    `attention_weights` (N, queries, heads, levels, points).
    """
    tensors = map(full, (value, sampling_locations, attention_weights))
    return _attention(value_spatial_shapes)(*tensors).to(value)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward` with respect to value, locations and weights."""
    tensors = (value, sampling_locations, attention_weights)
    results = (grad_value, grad_sampling_loc, grad_attn_weight)
    gradients(_attention(value_spatial_shapes), tensors, grad_output, results)
