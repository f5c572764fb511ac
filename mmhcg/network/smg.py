"""SMG, the module of HCGNet, and its two uses: densely in a hybrid block, alone as a transition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmhcg.network.gates import ForgetGate, UpdateGate
from mmhcg.network.layers import Norm, NormActConv


class SMG(nn.Module):
    """Squeeze, multi-scale excitation, gating: (N, Cin, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).

    The squeeze cell makes X'; the forget gate says how much of it stays (f), the update gate what is added
    (v): O = f X' + v. Paper, section 3.

    Args:
        in_channels: Cin.
        mid_channels: Width between the 1x1 and the 3x3 convolution.
        out_channels: C.
        groups: Groups of the 3x3 convolution.
        reduction: r, how much narrower the gates' hidden layers are.
        stride: Stride of the 3x3 convolution.
        activated: The input has been through norm and ReLU already.
        norm: Makes the norms on maps (N, C, H, W).
        gate_norm: Makes the norms inside the gates, on (N, C).
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        *,
        groups: int,
        reduction: int,
        stride: int = 1,
        activated: bool = False,
        norm: Norm,
        gate_norm: Norm,
    ) -> None:
        super().__init__()
        if activated:
            self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        else:
            self.conv1 = NormActConv(in_channels, mid_channels, 1, norm=norm)
        self.conv2 = NormActConv(mid_channels, out_channels, 3, stride=stride, groups=groups, norm=norm)
        self.update = UpdateGate(out_channels, reduction=reduction, norm=norm, gate_norm=gate_norm)
        self.forget = ForgetGate(out_channels, reduction=reduction, gate_norm=gate_norm)

    def forward(self, feat: Tensor) -> Tensor:
        feat = self.conv2(self.conv1(feat))  # X'
        update = self.update(feat)[..., None, None]  # (N, C, 1, 1)
        forget = self.forget(feat)[..., None, None]
        return torch.addcmul(update, forget, feat)


def dense_module(in_channels: int, growth_rate: int, *, norm: Norm, gate_norm: Norm) -> SMG:
    """The SMG of a hybrid block, which adds `growth_rate` channels to its input."""
    return SMG(
        in_channels, 4 * growth_rate, growth_rate, groups=4, reduction=2, norm=norm, gate_norm=gate_norm
    )


def transition(in_channels: int, *, norm: Norm, gate_norm: Norm) -> SMG:
    """The SMG between two blocks: halves channels and resolution of the activated map before it."""
    out_channels = in_channels // 2
    return SMG(
        in_channels,
        in_channels - (in_channels - out_channels) // 2,
        out_channels,
        groups=1,
        reduction=4,
        stride=2,
        activated=True,
        norm=norm,
        gate_norm=gate_norm,
    )
