"""What operators need to be called as mmcv calls them: float32 at least, and gradients in buffers."""

from collections.abc import Sequence
from typing import Callable

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is that."""
    return x if x.dtype == torch.float64 else x.float()


def finite(x: Tensor) -> Tensor:
    """`x` with 0 for what is not finite: with such positions torchvision leaves its memory on the CPU."""
    return x.nan_to_num(0, 0, 0)


def gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad_output: Tensor, results: Sequence[Tensor]
) -> None:
    """Write the gradients with respect to `inputs` to `results`, in this order.

    `function(*inputs)` is computed once more: mmcv keeps inputs of the forward pass, but no autograd graph.
    """
    with torch.enable_grad():
        inputs = [full(x.detach()).requires_grad_() for x in inputs]
        output = function(*inputs)
        if not output.requires_grad:  # it had nothing to sample; mmcv's buffers hold 0 already
            return
        derivatives = torch.autograd.grad(output, inputs, full(grad_output))
    for result, derivative in zip(results, derivatives):
        result.copy_(derivative)
