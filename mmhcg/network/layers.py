"""Convolution, norm and ReLU."""

from __future__ import annotations

from typing import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network.fast.affine import conv_norm

Norm = Callable[[int], nn.Module]  # number of channels -> norm layer


class ConvNormAct(nn.Module):
    """Conv, norm, ReLU: the stem's order. (N, Cin, H, W) -> (N, Cout, ceil(H / stride), ceil(W / stride)).

    Without `act` ReLU is left to what follows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, act: bool = True, norm: Norm
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = norm(out_channels)
        self.act = act

    def forward(self, feat: Tensor) -> Tensor:
        feat = conv_norm(feat, self.conv, self.norm)
        return F.relu(feat, inplace=True) if self.act else feat
