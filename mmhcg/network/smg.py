"""SMG, the module of HCGNet, and its two uses: densely in a hybrid block, alone as a transition."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network.fast import kernels
from mmhcg.network.fast.affine import conv_norm, folded, is_affine, running_affine
from mmhcg.network.fast.onednn import GroupedConv2d
from mmhcg.network.fast.recompute import recompute
from mmhcg.network.gates import ForgetGate, UpdateGate, has_closed_form, run_gates
from mmhcg.network.layers import Norm


class SMG(nn.Module):
    """Squeeze, multi-scale excitation, gating: (N, Cin, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).

    The squeeze cell makes X'; the forget gate says how much of it stays (f), the update gate what is added
    (v): O = f X' + v. Paper, section 3.

    It takes a block's maps separately and concatenates them itself, so that all modules of the block save the
    same maps for the backward pass, and none a concatenation of its own.

    Args:
        in_channels: Cin.
        mid_channels: Width between the 1x1 and the 3x3 convolution.
        out_channels: C.
        groups: Groups of the 3x3 convolution.
        reduction: r, how much narrower the gates' hidden layers are.
        stride: Stride of the 3x3 convolution.
        activated: The input has been through norm and ReLU already.
        with_cp: Save only the input for the backward pass, and X' where it is small; recompute the rest.
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
        with_cp: bool = False,
        norm: Norm,
        gate_norm: Norm,
    ) -> None:
        super().__init__()
        is_small = 5 * out_channels <= in_channels * stride**2  # X', beside the input
        self.recomputes = ('excited' if is_small else 'module') if with_cp else 'squeezed'
        self.norm1 = None if activated else norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.norm2 = norm(mid_channels)
        self.conv2 = GroupedConv2d(
            mid_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False
        )
        self.update = UpdateGate(out_channels, reduction=reduction, norm=norm, gate_norm=gate_norm)
        self.forget = ForgetGate(out_channels, reduction=reduction, gate_norm=gate_norm)

    def forward(self, *maps: Tensor) -> Tensor:
        return self._recomputed('module', self._forward, *maps)

    def _forward(self, *maps: Tensor) -> Tensor:
        feat = self._recomputed('excited', self._excite, *maps)  # X'
        is_lean = self.recomputes == 'module' or has_closed_form(self.update)
        gates = partial(gate_shares, partial(run_gates, self.update, self.forget))
        update, forget = gates(feat) if is_lean else recompute(self, gates, feat)
        return torch.addcmul(update, forget, feat)

    def _recomputed(self, what: str, function: Callable, *maps: Tensor) -> Tensor:
        return recompute(self, function, *maps) if self.recomputes == what else function(*maps)

    def _excite(self, *maps: Tensor) -> Tensor:
        norms = (self.norm1, self.norm2)
        if self.norm1 is not None and all(map(is_affine, norms)) and kernels.usable(maps[0]):
            hidden = kernels.squeeze(  # (N, mid, H, W)
                maps, *running_affine(self.norm1), *folded(self.conv1, self.norm2)
            )
        else:
            hidden = self._recomputed('squeezed', self._squeeze, *maps)
            hidden = F.relu(hidden)  # in place of a view its gradient would be copied
        return self.conv2(hidden)

    def _squeeze(self, *maps: Tensor) -> Tensor:
        feat = torch.cat(maps, 1) if len(maps) > 1 else maps[0]
        if self.norm1 is not None:
            feat = F.relu(self.norm1(feat), inplace=True)
        return conv_norm(feat, self.conv1, self.norm2)


def gate_shares(gates: Callable, feat: Tensor) -> tuple[Tensor, Tensor]:
    """v and f of `gates(feat)` as (N, C, 1, 1), computed without autocast, in the precision of feat."""
    with torch.autocast(feat.device.type, enabled=False):
        update, forget = gates(feat)
    return update.to(feat.dtype)[..., None, None], forget.to(feat.dtype)[..., None, None]


def dense_module(in_channels: int, growth_rate: int, **options: Any) -> SMG:
    """The SMG of a hybrid block, which adds `growth_rate` channels to its input. Options are those of SMG."""
    return SMG(in_channels, 4 * growth_rate, growth_rate, groups=4, reduction=2, **options)


def transition(in_channels: int, **options: Any) -> SMG:
    """The SMG between two blocks: halves channels and resolution of the activated map before it."""
    out_channels = in_channels // 2
    mid_channels = in_channels - (in_channels - out_channels) // 2
    return SMG(
        in_channels, mid_channels, out_channels, groups=1, reduction=4, stride=2, activated=True, **options
    )
