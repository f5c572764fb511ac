"""Sums over the positions of a map, weighted by a softmax over them: all that the gates ask of a map.

With X the map, Y = ReLU(norm(X)) its excited map for each of the update gate's two kernels, K such a kernel
(9, C), w a projection (C) and S the softmax over positions of the logits l, sums may change places:

    l_p = sum_c w_c sum_k K_kc Y_c,p+k = sum_k (sum_c w_c K_kc Y_c,p+k)    a product, its rows shifted
    z_c = sum_p S_p sum_k K_kc Y_c,p+k = sum_k K_kc (sum_q S_q-k Y_c,q)    a product with shifts of S

so that neither depthwise convolution nor its output is needed. The forget gate has no kernel: Y = X, K = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOWS = tuple(dict(kernel_size=3, padding=dilation, dilation=dilation) for dilation in (1, 2))


def fold(rows: Tensor, size: torch.Size) -> list[Tensor]:
    """Nine rows for each kernel, summed up where the kernel's positions meet: (N, 2, 9, HW) -> 2 (N, 1, HW).

    `fold` adds what is at p to p + k, so that rows go from a kernel's last position to its first.
    """
    return [F.fold(row, size, **window).flatten(2) for row, window in zip(rows.unbind(1), WINDOWS)]


def unfold(maps: Tensor, size: torch.Size) -> Tensor:
    """Nine shifts of each of M maps for each kernel, in that order: (N, 2, M, HW) -> (N, 2, 9 M, HW)."""
    maps = maps.unflatten(-1, size)
    return torch.stack([F.unfold(map_, **window) for map_, window in zip(maps.unbind(1), WINDOWS)], 1)


def attend(feat: Tensor, excited: Tensor, rows: Tensor, project: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three softmaxes S, the sums over q of S_q-k Y_q for both kernels, and the forget gate's context z.

    Args:
        feat: X, (N, C, H, W).
        excited: Y, (N, 2, C, HW).
        rows: w K for each kernel, from its last position to its first, (2, 9, C).
        project: w of the forget gate, (C,).

    Returns:
        (N, 3, HW), (N, 2, 9, C) and (N, C).
    """
    flat, size = feat.flatten(2), feat.shape[2:]
    logits = torch.cat((*fold(rows @ excited, size), project[None] @ flat), 1)
    attention = logits.softmax(-1)
    sums = unfold(attention[:, :2, None], size) @ excited.transpose(2, 3)
    return attention, sums, (attention[:, 2:] @ flat.transpose(1, 2)).squeeze(1)
