"""mmcv's deformable convolution, by torchvision's, on any device.

Names and arguments are those that `mmcv.ops` calls: see `mmcv_ops.py`, which hands these on.

Letters in shapes: N images, C and O channels, G groups of offsets, (h, w) kernel, (H, W) map, (P, Q) output.
"""

from typing import Callable

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d

from mmhcg.stack.calling import finite, full, gradients

# Deformable convolution (Dai et al., 2017; modulated: Zhu et al., 2018): `input` (N, C, H, W), `weight`
# (O, C / groups, h, w), `offset` (N, 2Ghw, P, Q) in pairs y, x, `mask` (N, Ghw, P, Q), `output` (N, O, P, Q).
# `sizes` are mmcv's keyword arguments, `columns` and `ones` its work space, not needed here.

_PLAIN = {'stride': ('dH', 'dW'), 'padding': ('padH', 'padW'), 'dilation': ('dilationH', 'dilationW')}
_MODULATED = {
    'stride': ('stride_h', 'stride_w'),
    'padding': ('pad_h', 'pad_w'),
    'dilation': ('dilation_h', 'dilation_w'),
}


def _convolution(sizes: dict[str, int], names: dict[str, tuple[str, str]]) -> Callable[..., Tensor]:
    """The function of input, offset, weight and, if modulated, mask and bias; `names` are keys of `sizes`.

    Both numbers of groups follow from the shapes.
    """
    geometry = {key: (sizes[height], sizes[width]) for key, (height, width) in names.items()}

    def convolve(*tensors: Tensor) -> Tensor:
        input, offset, weight, mask, bias = (*map(full, tensors), None, None)[:5]
        output = deform_conv2d(input, finite(offset), weight, bias, mask=mask, **geometry)
        return output + (offset * 0).sum(1, keepdim=True)  # NaN where an offset is not finite

    return convolve


def _modulated_convolution(sizes: dict[str, int], size: torch.Size) -> Callable[..., Tensor]:
    """As `_convolution`, with results of `size` (P, Q); offset and mask may have larger planes than that."""
    convolve = _convolution(sizes, _MODULATED)

    def modulated(input: Tensor, offset: Tensor, weight: Tensor, mask: Tensor, *bias: Tensor) -> Tensor:
        return convolve(input, _planes(offset, size), weight, _planes(mask, size), *bias)

    return modulated


def _planes(x: Tensor, size: torch.Size) -> Tensor:
    """Planes (N, J, P, Q) that mmcv finds in `x` (N, J, *, *): it takes them to lie P * Q numbers apart.

    DyHead gives offsets of a finer level, so its weights are trained with these. Of too few numbers mmcv
    would read past the end; here torchvision refuses them.
    """
    if x.shape[2:].numel() < size.numel():
        return x
    return x.flatten(1)[:, : x.shape[1] * size.numel()].unflatten(1, (x.shape[1], *size))


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor, **sizes: int
) -> None:
    """Convolution of `input`, sampled `offset` away from the regular grid, into `output`."""
    output.copy_(_convolution(sizes, _PLAIN)(input, offset, weight))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **sizes: int,
) -> None:
    """Gradients of `deform_conv_forward` with respect to input and offset."""
    convolve = _convolution(sizes, _PLAIN)
    gradients(lambda *x: convolve(*x, weight), (input, offset), grad_output, (grad_input, grad_offset))


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    **sizes: int,
) -> None:
    """Gradient of `deform_conv_forward` with respect to the weight, linear in it: zero will do for it."""
    convolve = _convolution(sizes, _PLAIN)
    gradients(
        lambda w: convolve(input, offset, w), (torch.zeros_like(grad_weight),), grad_output, (grad_weight,)
    )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """As `deform_conv_forward`, each sample times its `mask`, plus `bias` (O,), empty unless `with_bias`."""
    tensors = (input, offset, weight, mask, bias)
    output.copy_(_modulated_convolution(sizes, output.shape[2:])(*tensors[: 4 + with_bias]))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    with_bias: bool,
    **sizes: int,
) -> None:
    """Gradients of `modulated_deform_conv_forward` with respect to all its inputs."""
    tensors = (input, offset, weight, mask, bias)[: 4 + with_bias]
    results = (grad_input, grad_offset, grad_weight, grad_mask, grad_bias)
    gradients(_modulated_convolution(sizes, grad_output.shape[2:]), tensors, grad_output, results)
