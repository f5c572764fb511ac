"""mmcv's compiled operators on torchvision and plain PyTorch, on whatever device the tensors are.

`mmhcg.stack` lets Python load this file as `mmcv._ext` where mmcv has no compiled one. Names and arguments
are those that `mmcv.ops` calls, in the manner of C++: the caller allocates the results, and forward and
backward are separate functions. Half-precision inputs are computed in float32, as torchvision does under
autocast. Deformable convolution is in `deform_conv.py`; CARAFE, masked convolution, deformable RoI pooling
and attention are in `sampling_ops.py`.

Letters in shapes: N images, K boxes or RoIs, C channels or classes, (H, W) map, (P, Q) bins or output.
"""

from typing import Any, Callable

import torch
import torchvision  # noqa: F401  fills torch.ops.torchvision
from torch import Tensor

# By its full name, for Python knows this file as a part of mmcv.
from mmhcg.stack import plain_ops
from mmhcg.stack.calling import finite, full, gradients
from mmhcg.stack.deform_conv import (  # noqa: F401  mmcv calls them as they are
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from mmhcg.stack.plain_ops import (  # noqa: F401
    nms_match,
    softnms,
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)
from mmhcg.stack.sampling_ops import (  # noqa: F401
    carafe_backward,
    carafe_forward,
    deform_roi_pool_backward,
    deform_roi_pool_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
)


def __getattr__(name: str) -> Callable:
    """Any operator that this file lacks. mmcv wants all of them when imported, so only a call may fail."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def absent(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f'the mmcv operator {name!r} needs compiled mmcv; what mmhcg provides in its place lacks it. To '
            'get it, first `pip uninstall mmcv-lite`. Then build mmcv for your PyTorch, which takes a C++ '
            'compiler and for the GPU the CUDA toolkit: `pip install mmcv==2.1.0 --no-binary mmcv '
            '--no-build-isolation`. Or, with a PyTorch that OpenMMLab has built it for: `pip install openmim '
            '&& mim install mmcv==2.1.0`. mmhcg leaves compiled mmcv as it is.'
        )

    return absent


def get_compiler_version() -> str:
    """For mmcv's report on the environment."""
    return 'none (operators by mmhcg)'


get_compiling_cuda_version = get_compiler_version


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept `bboxes` (K, 4), best of the `scores` (K,) first."""
    # Sides of x2 - x1 + 1 are those of a box whose far corner lies one further.
    boxes = torch.cat((full(bboxes)[:, :2], full(bboxes)[:, 2:] + offset), 1)
    return torch.ops.torchvision.nms(boxes, scores.to(boxes), iou_threshold)


# Pooling of RoIs: `rois` (K, 5) are the index of an image in the batch, then x1, y1, x2, y2 in the image.


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al., 2017): `output` (K, C, P, Q) is the mean of the bilinear samples in each bin.

    `pool_mode` 0 takes their maximum instead, and notes which it was in `argmax_y` and `argmax_x`.
    """
    feat, bins = full(input), (aligned_height, aligned_width)
    boxes = finite(rois.to(feat))
    if pool_mode == 1:
        args = (feat, boxes, spatial_scale, *bins, sampling_ratio, aligned)
        output.copy_(torch.ops.torchvision.roi_align(*args))
    else:
        results = plain_ops.roi_align_max(feat, boxes, spatial_scale, bins, sampling_ratio, aligned)
        for buffer, result in zip((output, argmax_y, argmax_x), results):
            buffer.copy_(result)
    output += (rois * 0).sum(1)[:, None, None, None]  # NaN where a RoI is not finite


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to its input, in `grad_input` (N, C, H, W)."""
    grad, shape = full(grad_output), grad_input.shape
    rois = finite(rois.to(grad))
    if pool_mode == 1:
        args = (spatial_scale, aligned_height, aligned_width, *shape, sampling_ratio, aligned)
        grad_input.copy_(torch.ops.torchvision._roi_align_backward(grad, rois, *args))
    else:
        args = (argmax_y, argmax_x, shape, spatial_scale, sampling_ratio, aligned)
        grad_input.copy_(plain_ops.roi_align_max_backward(grad, rois, *args))


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool (Girshick, 2015): `output` (K, C, P, Q) is each bin's maximum, `argmax` its y * W + x or -1."""
    feat, bins = full(input), (pooled_height, pooled_width)
    for buffer, result in zip((output, argmax), plain_ops.roi_pool(feat, rois.to(feat), spatial_scale, bins)):
        buffer.copy_(result)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of `roi_pool_forward` with respect to its input, in `grad_input` (N, C, H, W)."""
    grad = full(grad_output) * (argmax >= 0)
    channels, area = grad.shape[1], grad_input[0, 0].numel()
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=grad.device)  # (K, C), in the batch
    cell = plane[..., None, None] * area + argmax.clamp(min=0)  # (K, C, P, Q), in the batch
    total = grad.new_zeros(grad_input.numel()).scatter_add_(0, cell.flatten(), grad.flatten())
    grad_input.copy_(total.view_as(grad_input))


# Focal loss (Lin et al., 2017): `input` (K, C), class of each row `target` (K,), class weights (C,) or empty.


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each logit and class, into `output` (K, C)."""
    output.copy_(plain_ops.sigmoid_focal_loss(full(input), target, full(weight), gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each loss with respect to its logit, into `grad_input` (K, C)."""

    def total(logits: Tensor) -> Tensor:
        return plain_ops.sigmoid_focal_loss(logits, target, full(weight), gamma, alpha).sum()

    gradients(total, (input,), input.new_ones(()), (grad_input,))


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Loss of each row of probabilities, into `output` (K,)."""
    output.copy_(plain_ops.softmax_focal_loss(_logits(input), target, full(weight), gamma, alpha))


def softmax_focal_loss_backward(
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    buff: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Derivative of each loss with respect to the *logits* behind the probabilities `input` (K, C)."""

    def total(logits: Tensor) -> Tensor:
        return plain_ops.softmax_focal_loss(logits, target, full(weight), gamma, alpha).sum()

    gradients(total, (_logits(input),), input.new_ones(()), (grad_input,))


def _logits(probabilities: Tensor) -> Tensor:
    return full(probabilities).clamp(min=torch.finfo(torch.float32).tiny).log()  # softmax(log p) = p
