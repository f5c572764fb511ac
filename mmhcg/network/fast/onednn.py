"""What oneDNN, which runs PyTorch's convolutions on CPUs, is slow at, done in another way."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network.fast import is_traced


def is_for_onednn(feat: Tensor) -> bool:
    """CPUs, but not maps with channels last, which need no reordering, nor compilers, which see to it."""
    return feat.device.type == 'cpu' and feat.is_contiguous() and not is_traced()


def pointwise(feat: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """1x1 convolution with stride 1: (N, Cin, H, W) and (Cout, Cin, 1, 1) -> (N, Cout, H, W).

    Where oneDNN runs it, it is a matrix product, which is faster, for the convolution reorders its maps.
    """
    if not is_for_onednn(feat):
        return F.conv2d(feat, weight, bias)
    weights = weight.flatten(1).expand(len(feat), -1, -1)
    return torch.baddbmm(bias[:, None], weights, feat.flatten(2)).unflatten(2, feat.shape[2:])


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups, which get a multiple of 8 outputs each while oneDNN trains it.

    It takes up to three times as long over the gradients of others. What is added is zero and cut off again.
    """

    def forward(self, feat: Tensor) -> Tensor:
        is_trained = torch.is_grad_enabled() and (feat.requires_grad or self.weight.requires_grad)
        is_usual = self.groups == 1 or self.bias is not None or not self.out_channels // self.groups % 8
        if is_usual or not is_trained or not is_for_onednn(feat):
            return super().forward(feat)
        width = self.out_channels // self.groups
        weight = self.weight.unflatten(0, (self.groups, width))
        weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -width % 8)).flatten(0, 1)
        feat = self._conv_forward(feat, weight, None)
        return feat.unflatten(1, (self.groups, -1))[:, :, :width].flatten(1, 2)


class RunChannelsLast(nn.Sequential):
    """Runs with channels last where oneDNN runs it: a max-pool takes a tenth of the time."""

    def forward(self, feat: Tensor) -> Tensor:
        is_users_choice = not all(parameter.is_contiguous() for parameter in self.parameters())
        if is_users_choice or not is_for_onednn(feat):
            return super().forward(feat)
        return super().forward(feat.contiguous(memory_format=torch.channels_last)).contiguous()
