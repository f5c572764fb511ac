"""What HCGNet's gates did with one image: where they looked, what they kept, what the stages put out.

The network runs as it always does. Hooks take each module's map X' and ask its gates once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmhcg.network import Trunk
from mmhcg.network.attention import attend
from mmhcg.network.fast.affine import at_least_float32
from mmhcg.network.gates import excite, projections_of
from mmhcg.network.smg import SMG


@dataclass(frozen=True)
class ModuleView:
    """One SMG module and one image.

    Attributes:
        stage: From 1.
        name: 'transition', or 'module 1' and so on in the stage's hybrid block.
        stride: Pixels of the network's input from one position to the next; position i is above pixel
            i * stride.
        attention3, attention5: Where the update gate looks with its 3x3 and its 5x5 kernel, (H, W) each,
            whose sum is 1.
        kept: f of the forget gate, (C,), in (0, 1).
    """

    stage: int
    name: str
    stride: int
    attention3: Tensor
    attention5: Tensor
    kept: Tensor


@dataclass
class Look:
    """What was seen: the modules in the order in which they ran, and the stages' outputs (C, H, W)."""

    modules: list[ModuleView] = field(default_factory=list)
    stages: list[Tensor] = field(default_factory=list)
    strides: list[int] = field(default_factory=list)


def find_trunk(model: nn.Module) -> Trunk | None:
    """The HCGNet in a model."""
    return next((module for module in model.modules() if isinstance(module, Trunk)), None)


@contextmanager
def looking(trunk: Trunk) -> Iterator[Look]:
    """See what the first image of each batch does inside; filled while the network runs in inference mode.

    A second run adds to it, so give each image a context of its own.
    """
    look, handles = Look(), []
    stride = trunk.out_strides[0] // 2 ** trunk.out_indices[0]  # of the first stage
    for number, stage in enumerate(trunk.stages, 1):
        modules = [(f'module {i}', module) for i, module in enumerate(stage.block, 1)]
        if stage.transition is not None:
            stride *= stage.transition.conv2.stride[0]
            modules.insert(0, ('transition', stage.transition))
        for name, module in modules:
            handles.append(
                module.conv2.register_forward_hook(_module_hook(look, number, name, stride, module))
            )
        handles.append(stage.register_forward_hook(_stage_hook(look, stride)))
    try:
        yield look
    finally:
        for handle in handles:
            handle.remove()


def ask_gates(module: SMG, feat: Tensor) -> tuple[Tensor, Tensor]:
    """Where the update gate's kernels look in the map X' (N, C, H, W), (N, 2, H, W), and f, (N, C)."""
    _, *projections = projections_of(module.update, module.forget)
    attention, _, context = attend(at_least_float32(feat), excite(module.update, feat), *projections)
    return attention[:, :2].unflatten(2, feat.shape[2:]), module.forget(context.to(feat.dtype))


def _module_hook(look: Look, stage: int, name: str, stride: int, module: SMG):
    @torch.no_grad()
    def hook(conv: nn.Conv2d, args: tuple[Tensor], feat: Tensor) -> None:
        with torch.autocast(feat.device.type, enabled=False):  # as the gates are run
            feat = feat[:1].to(conv.weight.dtype)
            (attention3, attention5), kept = (answer[0].float().cpu() for answer in ask_gates(module, feat))
            look.modules.append(ModuleView(stage, name, stride, attention3, attention5, kept))

    return hook


def _stage_hook(look: Look, stride: int):
    def hook(stage: nn.Module, args: tuple[Tensor], feat: Tensor) -> None:
        look.stages.append(feat[0].detach().float().cpu())
        look.strides.append(stride)

    return hook


def enlarge(feat: Tensor, stride: int, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """A map (K, H, W) in a picture of the network's input, bilinear: (K, h, w).

    Every convolution pads symmetrically, so that position i is above pixel i * stride of the input; beyond
    the last position the map goes on as there.

    Args:
        feat: The map.
        stride: Pixels of the input from one position to the next.
        input_size: Of the part of the input that the picture shows, its upper left one: padding is left out.
        size: (h, w) of the picture.
    """
    axes = []
    for positions, whole, pixels in zip(feat.shape[1:], input_size, size):
        pixel = (torch.arange(pixels) + 0.5) * whole / pixels - 0.5  # of the input
        axes.append(2 * (pixel / stride + 0.5) / positions - 1)  # the map's borders are at -1 and 1
    y, x = torch.meshgrid(*axes, indexing='ij')
    grid = torch.stack((x, y), -1)[None]  # (1, h, w, 2)
    return F.grid_sample(feat[None], grid, padding_mode='border', align_corners=False)[0]


def spread(attention: Tensor) -> float:
    """How much of the image a map looks at: 1 where it looks everywhere alike, 1 / positions at a single one.

    The exponential of its entropy, by the number of positions.
    """
    return float(torch.special.entr(attention.double()).sum().exp() / attention.numel())


def principal_colours(feat: Tensor) -> tuple[Tensor, Tensor]:
    """A map's three principal components as red, green and blue, and each one's share of the variance.

    (C, H, W) -> (3, H, W) in 0..1, and (3,). Deterministic: a component's largest weight is positive.
    """
    rows = feat.flatten(1).double()  # (C, HW)
    rows = rows - rows.mean(1, keepdim=True)
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    vectors = vectors[:, -3:].flip(1)  # (C, 3), the largest first
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    parts = (vectors * largest.sign()).T @ rows  # (3, HW)
    low, high = (parts.quantile(q, 1, keepdim=True) for q in (0.01, 0.99))
    colours = ((parts - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    shares = values[-3:].flip(0).clamp(min=0) / values.sum().clamp(min=1e-12)
    return colours.view(3, *feat.shape[1:]).float(), shares.float()
