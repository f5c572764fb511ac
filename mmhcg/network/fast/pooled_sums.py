"""The gates' sums over positions with their gradients in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mmhcg.network.attention import attend, fold, unfold


class PooledSums(Function):
    """`apply(feat, scale, shift, rows, project)`: `attend` without S, for Y = ReLU(scale X + shift).

    Kept for the backward pass are X, in its own precision, and S. Scale and shift are (2, C). It computes in
    the precision of all but X. Second derivatives are automatic, of `attend`.
    """

    @staticmethod
    def forward(
        ctx: Any, feat: Tensor, scale: Tensor, shift: Tensor, rows: Tensor, project: Tensor
    ) -> tuple[Tensor, Tensor]:
        own = feat.to(rows.dtype)
        attention, *sums = attend(own, _excited(own, scale, shift), rows, project)
        ctx.save_for_backward(feat, scale, shift, rows, project, attention)
        return tuple(sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once, where they are recomputed
        feat, scale, shift, rows, project, _ = saved
        with torch.autocast(feat.device.type, enabled=False):
            if not torch.is_grad_enabled():
                return _gradients(saved, *grads)
            own = feat.to(rows.dtype)
            _, *sums = attend(own, _excited(own, scale, shift), rows, project)
            inputs = [t for t, needed in zip(saved, ctx.needs_input_grad) if needed]
            found = iter(torch.autograd.grad(sums, inputs, grads, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


def _gradients(
    saved: Sequence[Tensor], grad_sums: Tensor, grad_context: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of X, scale, shift, rows and project."""
    feat, scale, shift, rows, project, attention = saved
    own = feat.to(rows.dtype)
    excited, flat, size = _excited(own, scale, shift), own.flatten(2), feat.shape[2:]
    grad_logits = torch.cat((*fold(grad_sums @ excited, size), grad_context[:, None] @ flat), 1)
    # Of a softmax: S (g - sum S g). From the sums and their gradients it would not cancel to rounding.
    grad_logits = attention * (grad_logits - (attention * grad_logits).sum(-1, keepdim=True))

    pairs = torch.stack((attention, grad_logits), 2)  # (N, 3, 2, HW)
    shifts = unfold(pairs[:, :2], size)  # (N, 2, 18, HW)
    grad_rows = (shifts[:, :, 9:] @ excited.transpose(2, 3)).sum(0)
    grad_excited = torch.cat((grad_sums, rows.expand_as(grad_sums)), 2).transpose(2, 3) @ shifts
    grad_excited = torch.ops.aten.threshold_backward(grad_excited, excited, 0)
    grad_scale, grad_shift = (grad_excited * flat[:, None]).sum((0, 3)), grad_excited.sum((0, 3))

    grad_project = (grad_logits[:, 2] * flat.transpose(0, 1)).sum((1, 2))
    grad_feat = torch.stack((grad_context, project.expand_as(grad_context)), 2) @ pairs[:, 2]
    for grad, gain in zip(grad_excited.unbind(1), scale):
        grad_feat.addcmul_(grad, gain[:, None])
    return grad_feat.view_as(feat).to(feat.dtype), grad_scale, grad_shift, grad_rows, grad_project


def _excited(feat: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """ReLU(scale X + shift): (N, C, H, W) and (2, C) -> (N, 2, C, HW)."""
    return torch.addcmul(shift[..., None], scale[..., None], feat.flatten(2)[:, None]).relu_()
