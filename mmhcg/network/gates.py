"""The gates of an SMG module: what to forget of its map, and what to add to it.

Both gates see a map only through attention-pooled sums over its positions, `context (N, C)`, and both answer
with one number per image and channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network import kernels
from mmhcg.network.layers import Norm, is_affine, running_affine


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
        return self.mix(self.pool3(feat), self.pool5(feat))

    def mix(self, context3: Tensor, context5: Tensor) -> Tensor:
        """v of the two contexts, (N, C) each."""
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
        return self.share(self.pool(feat))

    def share(self, context: Tensor) -> Tensor:
        """f of the context (N, C)."""
        hidden = torch.tanh(self.norm(self.squeeze(context)))
        return torch.sigmoid(self.expand(hidden))


def run_gates(update: UpdateGate, forget: ForgetGate, feat: Tensor) -> tuple[Tensor, Tensor]:
    """v and f, (N, C) each, in the precision of the parameters."""
    dtype = forget.squeeze.weight.dtype
    if not uses_kernels(update, feat):
        feat = feat.to(dtype)
        return update(feat), forget(feat)
    context, *contexts = pooled(feat, *pooling(update, forget)).to(dtype).unbind(1)
    return update.mix(*contexts), forget.share(context)


def uses_kernels(update: UpdateGate, feat: Tensor) -> bool:
    """Whether `run_gates` does: they know no norms but those on running statistics."""
    return kernels.usable(feat) and is_affine(update.pool3.norm) and is_affine(update.pool5.norm)


def pooling(update: UpdateGate, forget: ForgetGate) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three pools, the forget gate's first: scale and shift of their norms (3, C), w K and K (3, 9, C).

    The forget gate has neither norm nor kernel: scale 1, shift 0, and K is 1 in the middle and 0 around it.
    A projection's bias is the same for all positions, so that no softmax sees it.
    """
    pools = (update.pool3, update.pool5)
    affine3, affine5 = (running_affine(pool.norm) for pool in pools)
    project = [pool.project for pool in (forget.pool, *pools)]
    # 0 x bias: DDP waits for the gradient of every parameter.
    project = torch.stack([conv.weight.view(1, -1) + 0 * conv.bias for conv in project])
    middle = F.pad(torch.ones_like(affine3[0])[None], (0, 0, 4, 4))
    kernel = torch.stack([middle, *map(kernel_of, pools)])
    scale = torch.stack([torch.ones_like(affine3[0]), affine3[0], affine5[0]])
    shift = torch.stack([torch.zeros_like(affine3[1]), affine3[1], affine5[1]])
    return scale, shift, kernel * project, kernel


def pooled(feat: Tensor, scale: Tensor, shift: Tensor, rows: Tensor, kernel: Tensor) -> Tensor:
    """Contexts (N, 3, C) of the pools, by the kernels, in float32."""
    sums = kernels.pooled_sums(feat, scale.float(), shift.float(), rows.float())
    return (sums * kernel).sum(2)
