"""What a backbone is, whoever wrote it: the maps that it returns, and which parts of it learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmhcg.runs.config import alone, class_name, detector_of, inits_of
from mmhcg.runs.errors import UserError

IMAGE = 256  # pixels of the image that is shown to the backbone: its strides must divide it
NORMS = {'GN': 'GN', 'GroupNorm': 'GN'}  # by MMEngine's names and PyTorch's
NORMS.update(dict.fromkeys(('SyncBN', 'SyncBatchNorm', 'MMSyncBN'), 'SyncBN'))


class SwapError(UserError):
    """A backbone that HCGNet cannot replace; the message says why."""


@dataclass(frozen=True)
class Level:
    """A map that a backbone returns.

    Attributes:
        channels: Of the map.
        stride: Pixels of the image for each of its positions.
    """

    channels: int
    stride: int


def build_backbone(cfg: Config) -> nn.Module:
    """The backbone of the config's detector, with random weights.

    Raises:
        UserError: The config has none, or its constructor fails.
    """
    name = cfg.filename or 'the config'
    backbone = detector_of(cfg).get('backbone')
    if not isinstance(backbone, dict) or 'type' not in backbone:
        raise UserError(f'{name} has no backbone')
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    backbone = alone(backbone)
    if backbone.get('pretrained'):  # which some download when they are built
        backbone.pretrained = None
    try:
        return MODELS.build(backbone)
    except Exception as error:  # of any backbone's constructor
        raise UserError(
            f'{name}: what its backbone returns is unknown, as it cannot be built: '
            f'{type(error).__name__}: {error}'
        ) from error


def measure_config(cfg: Config) -> list[Level]:
    """`measure_levels` of the backbone of the config's detector."""
    return measure_levels(build_backbone(cfg), detector_of(cfg).backbone.get('in_channels', 3))


def measure_levels(network: nn.Module, in_channels: int = 3) -> list[Level]:
    """What a backbone returns for an image of `IMAGE` pixels.

    Raises:
        SwapError: It returns anything but one map (1, C, H, W) for each level.
    """
    name = type(network).__name__
    network.eval()  # whose return value is not to be relied on
    try:
        with torch.no_grad():
            answer = network(_images(network, 1, in_channels))
            network.train()
            learning = network(_images(network, 2, in_channels))
            network.eval()
    except Exception as error:  # of any backbone
        raise SwapError(f'{name} does not run on an image: {type(error).__name__}: {error}') from error
    maps, learning = _listed(answer), _listed(learning)
    if not maps or not learning or any(len(feat) != 1 for feat in maps):
        raise SwapError(f'{name} returns something else than a map for each level')
    if any(len(feat) != 2 for feat in learning):
        count = len(learning[0]) // 2
        raise SwapError(f'{name} returns {count} maps an image and level when it is trained')
    return [_level(feat) for feat in maps]


def count_frozen(network: nn.Module, strides: Sequence[int], in_channels: int = 3) -> int:
    """How many stages of an HCGNet with these `strides` have their like in frozen parts of a backbone.

    Counted as `frozen_stages` in `HCGNet`. Backbones count `frozen_stages` differently (stages, layers,
    blocks), so it is measured: a stage is frozen if the level of its stride gets no gradient in training on
    two images, or, where that is not returned, if any convolution of its stride is frozen.
    """
    frozen = []  # strides
    network.train()  # which freezes
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [
        layer.register_forward_hook(lambda _layer, _args, feat: frozen.append(_level(feat).stride))
        for layer in convolutions
        if not layer.weight.requires_grad
    ]
    with torch.enable_grad():
        maps = _listed(network(_images(network, 2, in_channels)))
    for hook in hooks:
        hook.remove()
    frozen += [_level(feat).stride for feat in maps if not feat.requires_grad]
    learning = [_level(feat).stride for feat in maps if feat.requires_grad]
    end = min(learning, default=_level(maps[-1]).stride + 1)
    deepest = max((stride for stride in frozen if stride < end), default=0)
    return sum(stride <= deepest for stride in strides) if deepest else -1


def _images(network: nn.Module, count: int, channels: int) -> Tensor:
    return next(network.parameters()).new_zeros(count, channels, IMAGE, IMAGE)


def _listed(answer: Any) -> Sequence[Tensor]:
    """The maps (N, C, H, W) that a backbone returns; none where it returns anything else."""
    maps = [answer] if isinstance(answer, Tensor) else answer
    if not isinstance(maps, (list, tuple)):
        return []
    return maps if all(isinstance(feat, Tensor) and feat.dim() == 4 for feat in maps) else []


def _level(feat: Tensor) -> Level:
    return Level(feat.shape[1], round(IMAGE / feat.shape[-1]))


def has_pretrained(cfg: Config) -> bool:
    """Whether the backbone starts from weights of its own, or from those of the whole detector."""
    if cfg.get('load_from'):
        return True
    for part in (detector_of(cfg), detector_of(cfg).backbone):
        if part.get('pretrained') or any('checkpoint' in init for init in inits_of(part)):
            return True
    return False


def norm_of(backbone: ConfigDict) -> dict[str, Any]:
    """The backbone's `norm_cfg` if it is GN or SyncBN; for all else BN, which HCGNet's weights are for.

    Whether its parameters learn is kept, too; numbers such as `eps` belong to the weights and are not.
    """
    old: dict[str, Any] = backbone.get('norm_cfg') or {}
    kind = NORMS.get(class_name(old), 'BN')
    groups = dict(num_groups=old['num_groups']) if kind == 'GN' else {}
    return dict(type=kind, **groups, requires_grad=old.get('requires_grad', True))
