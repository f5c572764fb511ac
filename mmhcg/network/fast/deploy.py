"""HCGNet for inference alone: fewer passes over the maps for the same numbers, to rounding.

Two identities carry it. A norm on running statistics is affine, and so are a convolution and a linear layer:

    a (W x) + b = (a W) x + b

And before a 1x1 convolution neither norm nor ReLU needs a pass of its own: with t = -b / a

    ReLU(a x + b) = a (max(x, t) - t) for a > 0,    a (min(x, t) - t) for a < 0

so that a and t go into weights and bias, and what remains is one comparison of the map with t.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F

from mmhcg.network.attention import fold, unfold
from mmhcg.network.fast import is_compiling, kernels
from mmhcg.network.fast.affine import is_affine, running_affine
from mmhcg.network.fast.onednn import pointwise
from mmhcg.network.gates import ForgetGate, UpdateGate
from mmhcg.network.layers import ConvNormAct
from mmhcg.network.smg import SMG, gate_shares
from mmhcg.network.trunk import Stage

# |t| from which on ReLU(a x + b) is as good as constant. The smaller one is for float16, which ends at 65504,
# and wherever that constant is 0: the bounded map is t there, and autocast may put it into float16.
LARGEST, LARGEST_SMALL = 1e6, 3e4


def deploy(model: nn.Module) -> nn.Module:
    """A copy of a trunk, a backbone or a whole detector whose HCGNet is made for inference alone.

    It is made for the precision that the model has: convert the model first, not the copy.

    Raises:
        ValueError: It has no HCGNet that is not deployed yet, or whose norms are not BatchNorms with running
            statistics.
    """
    model = deepcopy(model).eval().requires_grad_(False)
    kinds = {Stage: DeployedStage, ConvNormAct: _deployed_conv}
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in kinds
    ]
    if not found:
        raise ValueError(f'{type(model).__name__} has no HCGNet in it that is not deployed yet')
    for parent, name, child in found:
        setattr(parent, name, kinds[type(child)](child))
    return model


class DeployedStage(nn.Module):
    """A `Stage` whose modules write their outputs where the concatenation will have them."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.transition = None if stage.transition is None else DeployedSMG(stage.transition)
        self.block = nn.ModuleList(map(DeployedSMG, stage.block))
        self.norm = stage.norm

    def train(self, mode: bool = True) -> DeployedStage:
        """It stays in inference mode, whatever the mode."""
        return super().train(False)

    def forward(self, feat: Tensor) -> Tensor:
        first = (feat,) if self.transition is None else self.transition(feat)
        batch, channels, *size = first[-1].shape
        maps = torch.empty(
            (batch, len(self.norm.weight), *size),
            dtype=feat.dtype,
            device=feat.device,
            memory_format=suggest_memory_format(first[-1]),
        )
        if self.transition is None:
            maps[:, :channels].copy_(feat)
        else:
            _fuse(first, maps[:, :channels])
        for module in self.block:
            update, forget, feat = module(maps[:, :channels])
            end = channels + feat.shape[1]
            _fuse((update, forget, feat), maps[:, channels:end])
            channels = end
        return F.relu(self.norm(maps), inplace=True)


def _fuse(terms: tuple[Tensor, ...], out: Tensor) -> None:
    """Write f X' + v to `out`, of v, f and X'."""
    if is_compiling():  # which refuses to write to a slice, but leaves out the copy
        out.copy_(torch.addcmul(*terms))
    else:
        torch.addcmul(*terms, out=out)


class DeployedSMG(nn.Module):
    """An `SMG` up to its fusion: (N, Cin, H, W) -> v and f, both (N, C, 1, 1), and X' (N, C, H', W').

    O = f X' + v is left to the stage, which knows where it goes.
    """

    def __init__(self, smg: SMG) -> None:
        super().__init__()
        scale, bias = _affine(smg.norm2)
        weight = smg.conv1.weight.double() * scale[:, None, None, None]
        self.compare = None
        if smg.norm1 is not None:
            bounds = _Bounds.of(smg.norm1, like=smg.conv1.weight)
            self.compare = Compare(bounds, (-1, 1, 1), like=smg.conv1.weight)
            weight = _rounded(weight * bounds.gain[:, None, None], like=smg.conv1.weight)
            bias = bias - weight.flatten(1) @ bounds.threshold
        self.conv1 = _with_values(nn.Conv2d(*weight.shape[1::-1], 1), weight, bias, like=smg.conv1.weight)
        self.conv2 = smg.conv2
        self.gates = DeployedGates(smg.update, smg.forget)

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        conv, compare = (self.conv1.weight, self.conv1.bias), self.compare
        if compare is not None and kernels.usable(feat):
            hidden = kernels.squeeze((feat,), compare.lower, compare.upper, *conv, clamp=True)
        else:
            feat = feat if compare is None else compare(feat)
            hidden = F.relu(pointwise(feat, *conv), inplace=True)
        feat = self.conv2(hidden)  # X'
        return *gate_shares(self.gates, feat), feat


class DeployedGates(nn.Module):
    """Update and forget gate at once: (N, C, H, W) -> v and f, both (N, C). As in `mmhcg.network.gates`.

    The two excited maps are Y_c = gain_c (y_c - t_c) with y the map within its bounds, so

        sum_k K_ck (sum_q S_q-k Y_c,q) = sum_k gain_c K_ck (sum_q S_q-k y_c,q - t_c sum_q S_q-k)
    """

    def __init__(self, update: UpdateGate, forget: ForgetGate) -> None:
        super().__init__()
        pools, like = (update.pool3, update.pool5), forget.squeeze.weight
        each = (_Bounds.of(pool.norm, like) for pool in pools)
        bounds = _Bounds(*map(torch.stack, zip(*each)))  # (2, C) each
        kernel = torch.stack([pool.kernel for pool in pools]).double()  # (2, 9, C)
        project = torch.stack([pool.project.weight.flatten() for pool in pools]).double()[:, None]
        gained = kernel * bounds.gain[:, None]
        rows = _rounded(gained * project, like)
        self.compare = Compare(bounds, (2, -1, 1, 1), like)
        self.register_buffer('rows', rows.to(like))
        self.register_buffer('rows_shift', -(rows @ bounds.threshold[..., None]).to(like))  # (2, 9, 1)
        # Its bias is the same for all positions, so that a softmax over them does not see it.
        self.register_buffer('project', forget.pool.project.weight.flatten(1))
        self.register_buffer('kernel', gained.to(like))
        self.register_buffer('threshold', bounds.threshold[:, None].to(like))  # (2, 1, C)

        # For the Triton kernels, which need no bounds.
        scale, shift = map(torch.stack, zip(*(_affine(pool.norm) for pool in pools)))
        last = forget.pool.project.weight.flatten().double()
        branches = kernels.branches(scale, shift, kernel * project, last)
        kernel = torch.cat((F.pad(torch.ones_like(kernel[:1, :1]), (0, 0, 4, 4)), kernel))
        for name, value in zip(('scale', 'shift', 'rows', 'kernel'), (*branches, kernel)):
            self.register_buffer(f'branch_{name}', value.float())

        # Their hidden layers side by side. A softmax over two is a sigmoid of their difference.
        hidden = [_linear_norm(gate.squeeze, gate.norm) for gate in (update, forget)]
        expand3, expand5, expand = (
            (layer.weight.double(), layer.bias.double())
            for layer in (update.expand3, update.expand5, forget.expand)
        )
        self.squeeze = _side_by_side(hidden[0], hidden[1], like)
        self.expand = _side_by_side([a - b for a, b in zip(expand3, expand5)], expand, like)

    def forward(self, feat: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.squeeze.weight.dtype
        if kernels.usable(feat):
            sums = kernels.branch_sums(feat, self.branch_scale, self.branch_shift, self.branch_rows)
            context, context3, context5 = (sums * self.branch_kernel).sum(2).to(dtype).unbind(1)
        else:
            context3, context5, context = self._contexts(feat.to(dtype))
        hidden = torch.tanh(self.squeeze(torch.cat((context3, context5, context), 1)))
        share3, forget = torch.sigmoid(self.expand(hidden)).chunk(2, 1)
        return torch.lerp(context5, context3, share3), forget

    def _contexts(self, feat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `attend`, with y for Y; softmax and sums over positions in float32 at least."""
        batch, channels, *size = feat.shape
        excited = self.compare(feat[:, None]).flatten(3).flatten(0, 1)  # (2N, C, HW)
        weights, shift = (x.expand(batch, -1, -1, -1).flatten(0, 1) for x in (self.rows, self.rows_shift))
        rows = torch.baddbmm(shift, weights, excited).view(batch, 2, 9, -1)
        flat = feat.flatten(2)
        logits = torch.cat((*fold(rows, size), self.project @ flat), 1)
        attention = logits.softmax(-1, dtype=torch.promote_types(feat.dtype, torch.float32))  # (N, 3, HW)
        shifts = unfold(attention[:, :2, None], size).flatten(0, 1)  # (2N, 9, HW)
        sums = (shifts @ excited.transpose(1, 2).to(shifts.dtype)).to(feat.dtype).view(batch, 2, 9, channels)
        inside = shifts.sum(-1).view(batch, 2, 9, 1).to(feat.dtype)
        sums = torch.addcmul(sums, self.threshold, inside, value=-1)
        context = attention[:, 2:] @ flat.transpose(1, 2).to(attention.dtype)
        return (*(sums * self.kernel).sum(2).unbind(1), context.squeeze(1).to(feat.dtype))


class Compare(nn.Module):
    """min(max(x, lower), upper); an upper bound that bounds nothing costs no pass."""

    def __init__(self, bounds: _Bounds, shape: tuple[int, ...], like: Tensor) -> None:
        super().__init__()
        self.register_buffer('lower', bounds.lower.view(shape).to(like))
        self.register_buffer('upper', bounds.upper.view(shape).to(like))
        self.is_bounded = bool(bounds.upper.isfinite().any())

    def forward(self, feat: Tensor) -> Tensor:
        feat = torch.maximum(feat, self.lower)
        return torch.minimum(feat, self.upper) if self.is_bounded else feat


class _Bounds(NamedTuple):
    """ReLU(norm(x)) = gain (y - threshold) with y = min(max(x, lower), upper); each (C,), in float64."""

    lower: Tensor
    upper: Tensor
    gain: Tensor
    threshold: Tensor

    @classmethod
    def of(cls, norm: nn.Module, like: Tensor) -> _Bounds:
        scale, shift = _affine(norm)
        is_small = (shift <= 0) | (like.dtype == torch.float16)
        largest = torch.where(is_small, LARGEST_SMALL, LARGEST)
        constant = shift.abs() >= largest * scale.abs()
        threshold = _rounded(torch.where(constant, 0, -shift / scale), like)
        value, infinity = shift.clamp(min=0), torch.full_like(shift, torch.inf)
        return cls(
            lower=torch.where(constant, value, torch.where(scale > 0, threshold, -infinity)),
            upper=torch.where(constant, value, torch.where(scale < 0, threshold, infinity)),
            gain=torch.where(constant, 1, scale),
            threshold=threshold,
        )


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """`running_affine` in float64; a ValueError where there is none."""
    if not is_affine(norm):
        raise ValueError(f'only a BatchNorm with running statistics can be deployed, not {norm}')
    return running_affine(deepcopy(norm).double())


def _rounded(value: Tensor, like: Tensor) -> Tensor:
    """What is left of it in the precision of `like`: what is made of it must cancel there."""
    return value.to(like.dtype).double()


def _with_values(layer: nn.Module, weight: Tensor, bias: Tensor, like: Tensor) -> nn.Module:
    layer.to(like).requires_grad_(False)
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    layer.bias.copy_(bias.flatten())
    return layer


def _linear_norm(linear: nn.Linear, norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale, shift = _affine(norm)
    return linear.weight.double() * scale[:, None], linear.bias.double() * scale + shift


def _side_by_side(first: Sequence[Tensor], second: Sequence[Tensor], like: Tensor) -> nn.Linear:
    """One linear layer for two (weight, bias) that share neither input nor output."""
    weight = torch.block_diag(first[0], second[0])
    return _with_values(nn.Linear(*weight.shape[::-1]), weight, torch.cat((first[1], second[1])), like)


def _deployed_conv(part: ConvNormAct) -> nn.Module:
    scale, shift = _affine(part.norm)
    conv, like = part.conv, part.conv.weight
    folded = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, padding=1)
    folded = _with_values(folded, like.double() * scale[:, None, None, None], shift, like)
    return nn.Sequential(folded, nn.ReLU(inplace=True)) if part.act else folded
