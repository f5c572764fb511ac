"""The gates of an SMG module: what to forget of its map, and what to add to it.

Both gates see a map only through attention-pooled sums over its positions, `context (N, C)`, and both answer
with one number per image and channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network.attention import attend
from mmhcg.network.fast import is_traced, kernels
from mmhcg.network.fast.affine import at_least_float32, is_affine, running_affine
from mmhcg.network.fast.pooled_sums import PooledSums
from mmhcg.network.layers import Norm


class AttentionPool(nn.Module):
    """The forget gate's projection w, whose logits weight positions. It has no forward: see `contexts`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, 1, 1)


class ExcitedAttentionPool(nn.Module):
    """Parameters of one of the update gate's two pools: norm, depthwise kernel K and projection w.

    Attention pooling of the excited map `depthwise(ReLU(norm(feat)))`, which `contexts` does for all pools at
    once: it has no forward of its own.
    """

    def __init__(self, channels: int, *, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.depthwise = nn.Conv2d(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
        )
        self.project = nn.Conv2d(channels, 1, 1)

    @property
    def kernel(self) -> Tensor:
        """K from its last position to its first, (9, C), as `fold` and `unfold` want it."""
        return self.depthwise.weight.flatten(1).t().flip(0)


class UpdateGate(nn.Module):
    """What to add to the map, v: its two excited contexts, mixed per channel. Twice (N, C) -> (N, C).

    Args:
        channels: C.
        reduction: r; the hidden layer has 2C // r units.
        norm: Makes the norms on maps (N, C, H, W).
        gate_norm: Makes the norm on the hidden layer (N, 2C // r).
    """

    def __init__(self, channels: int, *, reduction: int, norm: Norm, gate_norm: Norm) -> None:
        super().__init__()
        hidden = 2 * channels // reduction
        self.pool3 = ExcitedAttentionPool(channels, dilation=1, norm=norm)
        self.pool5 = ExcitedAttentionPool(channels, dilation=2, norm=norm)
        self.squeeze = nn.Linear(2 * channels, hidden)
        self.norm = gate_norm(hidden)
        self.expand3 = nn.Linear(hidden, channels)
        self.expand5 = nn.Linear(hidden, channels)

    def forward(self, context3: Tensor, context5: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.squeeze(torch.cat((context3, context5), 1))))
        # A softmax over two is a sigmoid of their difference: u3 = sigmoid(e3 - e5), u5 = 1 - u3.
        share3 = torch.sigmoid(self.expand3(hidden) - self.expand5(hidden))
        return torch.lerp(context5, context3, share3)


class ForgetGate(nn.Module):
    """How much of the map to keep, f in (0, 1), by its context. (N, C) -> (N, C).

    The hidden layer has C // r units.
    """

    def __init__(self, channels: int, *, reduction: int, gate_norm: Norm) -> None:
        super().__init__()
        hidden = channels // reduction
        self.pool = AttentionPool(channels)
        self.squeeze = nn.Linear(channels, hidden)
        self.norm = gate_norm(hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, context: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.squeeze(context)))
        return torch.sigmoid(self.expand(hidden))


def run_gates(update: UpdateGate, forget: ForgetGate, feat: Tensor) -> tuple[Tensor, Tensor]:
    """v and f of the map (N, C, H, W), (N, C) each, in the precision of the parameters."""
    *excited, context = contexts(update, forget, feat)
    return update(*excited), forget(context)


def contexts(update: UpdateGate, forget: ForgetGate, feat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z of the 3x3 and of the 5x5 kernel and of the forget gate: (N, C, H, W) -> (N, C) each."""
    kernel, *projections = projections_of(update, forget)
    if has_closed_form(update):
        affine = zip(*(running_affine(pool.norm) for pool in (update.pool3, update.pool5)))
        scale, shift = map(torch.stack, affine)  # (2, C) each
        pooled_sums = kernels.pooled_sums if kernels.usable(feat) else PooledSums.apply
        sums, context = pooled_sums(feat, scale, shift, *projections)
    else:
        _, sums, context = attend(feat.to(kernel.dtype), excite(update, feat), *projections)
    dtype = forget.squeeze.weight.dtype
    return (*(sums * kernel).sum(2).to(dtype).unbind(1), context.to(dtype))


def has_closed_form(update: UpdateGate) -> bool:
    """Whether `contexts` has gradients in closed form: of affine norms, where nobody compiles or traces."""
    return not is_traced() and is_affine(update.pool3.norm) and is_affine(update.pool5.norm)


def projections_of(update: UpdateGate, forget: ForgetGate) -> tuple[Tensor, Tensor, Tensor]:
    """K and w K of the update gate, (2, 9, C) each, and w of the forget gate, (C,); in float32 at least."""
    pools = (update.pool3, update.pool5)
    kernel = torch.stack([pool.kernel for pool in pools])
    # 0 x bias: no softmax sees it, but DDP waits for the gradient of every parameter.
    project, *projects = (
        pool.project.weight.flatten() + 0 * pool.project.bias for pool in (forget.pool, *pools)
    )
    return tuple(map(at_least_float32, (kernel, kernel * torch.stack(projects)[:, None], project)))


def excite(update: UpdateGate, feat: Tensor) -> Tensor:
    """Y of both kernels, in float32 at least: (N, C, H, W) -> (N, 2, C, HW)."""
    feat = feat.to(update.squeeze.weight.dtype)
    excited = [F.relu(pool.norm(feat)) for pool in (update.pool3, update.pool5)]
    return at_least_float32(torch.stack(excited, 1).flatten(3))
