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
    """Softmax over all positions, in float32 at least: (N, K, H, W) or (N, K, HW) -> (N, K, HW)."""
    precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return logits.flatten(2).softmax(-1, dtype=precision)


def position_sums(feat: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums over positions, accumulated in the precision of `weights`, returned in that of `feat`.

    (N, C, H, W) and (N, K, HW) -> (N, K, C).
    """
    return (weights @ feat.flatten(2).transpose(1, 2).to(weights.dtype)).to(feat.dtype)


class AttentionPool(nn.Module):
    """Sum over positions, weighted by a softmax over them: (N, C, H, W) -> (N, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, 1, 1)

    def forward(self, feat: Tensor) -> Tensor:
        logits = (
            self.project.weight.flatten(1) @ feat.flatten(2) + self.project.bias
        )  # as a conv it is slower
        return position_sums(feat, position_softmax(logits)).squeeze(1)


class ExcitedAttentionPool(nn.Module):
    """`AttentionPool` of the excited map `depthwise(ReLU(norm(feat)))`, which is never computed.

    With Y = ReLU(norm(feat)), K the depthwise kernel (C, 9), w the projection (C) and S the softmax of the
    logits l, sums may change places:

        l_p = sum_c w_c sum_k K_ck Y_c,p+k = sum_k (sum_c w_c K_ck Y_c,p+k)    a product, its rows shifted
        z_c = sum_p S_p sum_k K_ck Y_c,p+k = sum_k K_ck (sum_q S_q-k Y_c,q)    a product with shifts of S

    so neither the depthwise convolution nor its (N, C, H, W) output is needed. (N, C, H, W) -> (N, C).
    """

    def __init__(self, channels: int, *, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.window = dict(padding=dilation, dilation=dilation)
        self.norm = norm(channels)
        # These hold K and w and are not called.
        self.depthwise = nn.Conv2d(channels, channels, 3, groups=channels, bias=False, **self.window)
        self.project = nn.Conv2d(channels, 1, 1)

    def forward(self, feat: Tensor) -> Tensor:
        feat = F.relu(self.norm(feat), inplace=True)
        kernel = kernel_of(self)
        shifts = F.unfold(self.attention(feat, kernel), 3, **self.window)  # (N, 9, HW)
        return (position_sums(feat, shifts) * kernel).sum(1)

    def attention(self, feat: Tensor, kernel: Tensor) -> Tensor:
        """S, of Y (N, C, H, W) and of K as `kernel_of` gives it: (N, 1, H, W), the sum of an image is 1."""
        rows = (kernel * self.project.weight.flatten()) @ feat.flatten(2)  # (N, 9, HW)
        logits = F.fold(rows, feat.shape[2:], 3, **self.window) + self.project.bias  # (N, 1, H, W)
        return position_softmax(logits).view_as(logits)


def kernel_of(pool: ExcitedAttentionPool) -> Tensor:
    """K from its last position to its first, (9, C), for `fold` and `unfold` know k as -k.

    They add what is at p to p + k, and take for q what is at q + k.
    """
    return pool.depthwise.weight.flatten(1).t().flip(0)


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
