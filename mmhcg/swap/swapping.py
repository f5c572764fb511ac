"""HCGNet in place of a config's backbone.

It goes by what the old backbone is, built without weights: the channels and strides of the maps that it
returns. HCGNet returns maps of the same strides; the channel numbers of what reads them are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import nn

from mmhcg.network import get_variant
from mmhcg.runs.config import detector_of, load_config
from mmhcg.runs.errors import UserError
from mmhcg.swap.old import (
    Level,
    SwapError,
    build_backbone,
    count_frozen,
    has_pretrained,
    measure_levels,
    norm_of,
)
from mmhcg.swap.readers import refuse_dependence, replace_channels
from mmhcg.weights.names import ARCHS


@torch.random.fork_rng(devices=[])  # the networks that are built on the way draw random weights
def swap_backbone(
    cfg: str | Path | Config | dict[str, Any],
    arch: str = 'b',
    *,
    pretrained: str | bool | None = None,
    frozen_stages: int | None = None,
    norm_eval: bool | None = None,
) -> Config:
    """A copy of a config with HCGNet for a backbone.

    Replaced is the backbone of the model, or of the `detector` that a tracker or a semi-supervised wrapper
    holds; teachers of a distillation stay. The channel numbers that read the old backbone become HCGNet's:
    those of the neck, the first of several, or of the heads where there is no neck, and what a neck passes on
    as it came. Weights of the whole old detector (`load_from`, its `init_cfg`) are dropped, for they do not
    fit. Nothing else changes.

    Args:
        cfg: A config file, a name such as 'mmdet::atss/atss_r50_fpn_1x_coco.py', a Config or its dict.
        arch: 'b' or 'c'.
        pretrained: File of the backbone's first weights; True: 'checkpoints/hcgnet_<arch>_in1k.safetensors';
            False: none. None: as True where the old backbone had pretrained weights, unless its norm is GN or
            its images have other channels than three, for which there are none.
        frozen_stages: As in `HCGNet`. None: what is frozen in the old backbone, by the strides of its maps;
            nothing without pretrained weights.
        norm_eval: As in `HCGNet`. None: as the old backbone, True where it has no such option; False without
            pretrained weights.

    Raises:
        UserError: The config cannot be read or has no backbone, or an option has no such value.
        SwapError: The backbone cannot be replaced.
    """
    if arch not in ARCHS:
        raise UserError(f'arch must be one of {", ".join(ARCHS)}, not {arch!r}')
    cfg = load_config(cfg)
    detector = detector_of(cfg)
    refuse_dependence(detector)
    network = build_backbone(cfg)
    levels = measure_levels(network, detector.backbone.get('in_channels', 3))
    indices = _stages_for(levels, arch)
    _check_options(pretrained, frozen_stages, indices[-1] + 1, norm_eval)
    detector.backbone = _backbone(cfg, network, arch, indices, pretrained, frozen_stages, norm_eval)
    if cfg.get('load_from'):
        cfg.load_from = None
    if detector.get('init_cfg'):
        detector.init_cfg = None
    new = [get_variant(arch).stage_channels[index] for index in indices]
    replace_channels(detector, [level.channels for level in levels], new)
    return cfg


def _stages_for(levels: Sequence[Level], arch: str) -> tuple[int, ...]:
    """HCGNet's stages of the strides of these levels."""
    strides = tuple(level.stride for level in levels)
    known = get_variant(arch).stage_strides
    if len(set(strides)) < len(strides):
        raise SwapError(f'the heads read maps of strides {strides}; HCGNet has one of each stride')
    if not set(strides) <= set(known):
        raise SwapError(f'the heads read maps of strides {strides}; HCGNet has {known}')
    if strides != tuple(sorted(strides)):
        raise SwapError(
            f'the old backbone returns its maps in the order of strides {strides}; HCGNet has these strides, '
            'but returns the finest map first'
        )
    return tuple(known.index(stride) for stride in strides)


def _check_options(pretrained: Any, frozen_stages: Any, most: int, norm_eval: Any) -> None:
    if not isinstance(pretrained, (str, Path, bool, type(None))):
        raise UserError(f'pretrained must be a file, True, False or None, not {pretrained!r}')
    if not isinstance(norm_eval, (bool, type(None))):
        raise UserError(f'norm_eval must be True, False or None, not {norm_eval!r}')
    fits = isinstance(frozen_stages, int) and -1 <= frozen_stages <= most
    if frozen_stages is not None and not fits:
        raise UserError(f'frozen_stages must be a whole number in -1..{most} here, not {frozen_stages!r}')


def _backbone(
    cfg: Config,
    network: nn.Module,
    arch: str,
    indices: tuple[int, ...],
    pretrained: str | bool | None,
    frozen_stages: int | None,
    norm_eval: bool | None,
) -> ConfigDict:
    """HCGNet's config, with the habits of the old backbone `network` where the arguments are None."""
    old = detector_of(cfg).backbone
    norm_cfg, in_channels = norm_of(old), old.get('in_channels', 3)
    if pretrained is None:
        pretrained = has_pretrained(cfg) and norm_cfg['type'] != 'GN' and in_channels == 3  # as the files are
    if pretrained is True:
        pretrained = f'checkpoints/hcgnet_{arch}_in1k.safetensors'
    if not pretrained:  # what starts at random has to learn
        norm_cfg['requires_grad'] = True
    if frozen_stages is None:
        strides = get_variant(arch).stage_strides
        frozen_stages = count_frozen(network, strides, in_channels) if pretrained else -1
    if norm_eval is None:
        norm_eval = bool(pretrained) and getattr(network, 'norm_eval', True)
    new = ConfigDict(
        type='mmhcg.HCGNet',
        arch=arch,
        out_indices=indices,
        frozen_stages=frozen_stages,
        norm_cfg=norm_cfg,
        norm_eval=norm_eval,
        init_cfg=dict(type='Pretrained', checkpoint=str(pretrained)) if pretrained else None,
    )
    if in_channels != 3:
        new.in_channels = in_channels
    if old.get('with_cp'):
        new.with_cp = True
    return new
