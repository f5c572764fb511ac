"""The two orders in which HCGNet puts convolution, norm and ReLU."""

from __future__ import annotations

from typing import Callable

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]  # number of channels -> norm layer


class ConvNormAct(nn.Module):
    """Conv, norm, ReLU: the stem's order. (N, Cin, H, W) -> (N, Cout, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1, norm: Norm) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm = norm(out_channels)

    def forward(self, feat: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(feat)))


class NormActConv(nn.Module):
    """Norm, ReLU, convolution: the order elsewhere. Shapes as in `ConvNormAct`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.norm = norm(in_channels)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )

    def forward(self, feat: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(feat)))
