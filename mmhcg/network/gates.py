"""The gates of an SMG module: what to forget of its map, and what to add to it.

Both gates see a map only through attention-pooled sums over its positions, `context (N, C)`, and both answer
with one number per image and channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network.layers import Norm


def position_softmax(logits: Tensor) -> Tensor:
    """Softmax over all positions, in float32 at least: (N, 1, H, W) -> (N, 1, HW)."""
    return logits.flatten(2).softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def position_sums(feat: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums over positions, in the precision of `weights` also under autocast.

    (N, C, H, W) and (N, K, HW) -> (N, C, K), in the precision of `feat`.
    """
    with torch.autocast(feat.device.type, enabled=False):
        sums = feat.flatten(2).to(weights.dtype) @ weights.transpose(1, 2)
    return sums.to(feat.dtype)


class AttentionPool(nn.Module):
    """Sum over positions, weighted by a softmax over them: (N, C, H, W) -> (N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, 1, 1)

    def forward(self, feat: Tensor) -> Tensor:
        return position_sums(feat, position_softmax(self.project(feat))).squeeze(2)


class ExcitedAttentionPool(nn.Module):
    """`AttentionPool` of the excited map `depthwise(ReLU(norm(feat)))`, which is never computed.

    With Y = ReLU(norm(feat)), K the depthwise kernel (C, 9), w the projection (C) and S the softmax of the
    logits l, sums may change places:

        l_p = sum_c w_c sum_k K_ck Y_c,p+k = sum_k sum_c (w_c K_ck) Y_c,p+k    a convolution to one channel
        z_c = sum_p S_p sum_k K_ck Y_c,p+k = sum_k K_ck sum_q S_q-k Y_c,q      a product with nine shifts of S

    so neither the depthwise convolution nor its (N, C, H, W) output is needed. (N, C, H, W) -> (N, C).
    """

    def __init__(self, channels: int, *, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = norm(channels)
        window = dict(padding=dilation, dilation=dilation)
        # These hold K and w and are not called.
        self.depthwise = nn.Conv2d(channels, channels, 3, groups=channels, bias=False, **window)
        self.project = nn.Conv2d(channels, 1, 1)

    def forward(self, feat: Tensor) -> Tensor:
        feat = F.relu(self.norm(feat))
        kernel = self.depthwise.weight  # (C, 1, 3, 3)
        window = dict(padding=self.dilation, dilation=self.dilation)
        logits = F.conv2d(feat, kernel.transpose(0, 1) * self.project.weight, self.project.bias, **window)
        attention = position_softmax(logits).view_as(logits)  # (N, 1, H, W)
        shifts = F.unfold(attention, 3, **window).flip(1)  # (N, 9, HW): S at q - k
        sums = position_sums(feat, shifts)  # (N, C, 9)
        return (sums * kernel.flatten(1)).sum(-1).to(feat.dtype)


class UpdateGate(nn.Module):
    """What to add to the map, v: the two excited contexts, mixed per channel. (N, C, H, W) -> (N, C).

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

    def forward(self, feat: Tensor) -> Tensor:
        context3, context5 = self.pool3(feat), self.pool5(feat)
        hidden = torch.tanh(self.norm(self.squeeze(torch.cat((context3, context5), 1))))
        # A softmax over two is a sigmoid of their difference: u3 = sigmoid(e3 - e5), u5 = 1 - u3.
        share3 = torch.sigmoid(self.expand3(hidden) - self.expand5(hidden))
        return torch.lerp(context5, context3, share3)


class ForgetGate(nn.Module):
    """How much of the map to keep, f in (0, 1). (N, C, H, W) -> (N, C). The hidden layer has C // r units."""

    def __init__(self, channels: int, *, reduction: int, gate_norm: Norm) -> None:
        super().__init__()
        hidden = channels // reduction
        self.pool = AttentionPool(channels)
        self.squeeze = nn.Linear(channels, hidden)
        self.norm = gate_norm(hidden)
        self.expand = nn.Linear(hidden, channels)

    def forward(self, feat: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.squeeze(self.pool(feat))))
        return torch.sigmoid(self.expand(hidden))
