"""HCGNet in place of the backbone of any MMDetection config, with every number downstream that came from it.

It goes by what the old backbone is, built without weights: the channels and strides of the maps that it
returns. HCGNet returns maps of the same strides; the channel numbers of what reads them are replaced.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmhcg.network import get_variant
from mmhcg.runs.config import alone, detector_of, dicts_of, load_config
from mmhcg.runs.errors import UserError

ARCHS = ('b', 'c')
LINE = 100  # characters of a written config
IMAGE = 256  # pixels of the image that is shown to the old backbone: its strides must divide it


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


def swap_backbone(
    cfg: str | Path | Config,
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
        cfg: A config file, a name such as 'mmdet::atss/atss_r50_fpn_1x_coco.py', or a Config.
        arch: 'b' or 'c'.
        pretrained: File of the backbone's first weights; True: 'checkpoints/hcgnet_<arch>_in1k.safetensors';
            False: none. None: as True where the old backbone had pretrained weights and its norm is not GN,
            for which there are none.
        frozen_stages: As in `HCGNet`. None: as the old backbone, nothing without pretrained weights.
        norm_eval: As in `HCGNet`. None: as the old backbone, True where it has no such option; False without
            pretrained weights.

    Raises:
        UserError: The config cannot be read or has no backbone.
        SwapError: The backbone cannot be replaced.
    """
    cfg = load_config(cfg)
    detector = detector_of(cfg)
    old = detector.get('backbone')
    if not isinstance(old, dict) or 'type' not in old:
        raise UserError(f'{cfg.filename or "the config"} has no backbone')
    _refuse_dependence(detector)
    if arch not in ARCHS:
        raise UserError(f'arch must be one of {", ".join(ARCHS)}, not {arch!r}')
    network = _build_backbone(cfg, old)
    levels = measure_levels(network, old.get('in_channels', 3))
    indices = _stages_for(levels, arch)
    variant = get_variant(arch)

    norm_cfg = _norm_cfg(old)
    if pretrained is None:  # weights are for BN
        pretrained = _has_pretrained(cfg) and norm_cfg['type'] != 'GN'
    if pretrained is True:
        pretrained = f'checkpoints/hcgnet_{arch}_in1k.safetensors'
    if frozen_stages is None:
        frozen_stages = _frozen_stages(network, indices) if pretrained else -1
    if norm_eval is None:
        norm_eval = bool(pretrained) and getattr(network, 'norm_eval', True)
    detector.backbone = ConfigDict(
        type='mmhcg.HCGNet',
        arch=arch,
        out_indices=indices,
        frozen_stages=frozen_stages,
        norm_cfg=norm_cfg,
        norm_eval=norm_eval,
        init_cfg=dict(type='Pretrained', checkpoint=str(pretrained)) if pretrained else None,
    )
    if cfg.get('load_from'):
        cfg.load_from = None
    if detector.get('init_cfg'):
        detector.init_cfg = None
    if old.get('in_channels', 3) != 3:
        detector.backbone.in_channels = old.in_channels
    new = [variant.stage_channels[index] for index in indices]
    _replace_channels(detector, [level.channels for level in levels], new)
    return cfg


def measure_levels(network: nn.Module, in_channels: int = 3) -> list[Level]:
    """What a backbone returns for an image of `IMAGE` pixels.

    Raises:
        SwapError: It returns anything but one map (1, C, H, W) for each level.
    """
    network.eval()  # whose return value is not to be relied on
    image = next(network.parameters()).new_zeros(1, in_channels, IMAGE, IMAGE)
    try:
        with torch.no_grad():
            maps = network(image)
            network.train()
            learning = network(image.expand(2, -1, -1, -1))
            network.eval()
    except Exception as error:  # of any backbone
        raise SwapError(f'{type(network).__name__} does not run on an image: {error}') from error
    if isinstance(learning, (list, tuple)) and any(len(feat) != 2 for feat in learning):
        count = len(learning[0]) // 2
        raise SwapError(
            f'{type(network).__name__} returns {count} maps an image and level when it is trained'
        )
    maps = [maps] if isinstance(maps, Tensor) else maps
    levels = []
    for feat in maps:
        if not isinstance(feat, Tensor) or feat.dim() != 4 or len(feat) != 1:
            raise SwapError(f'{type(network).__name__} returns something else than a map for each level')
        levels.append(Level(feat.shape[1], round(IMAGE / feat.shape[-1])))
    return levels


def _build_backbone(cfg: Config, backbone: ConfigDict) -> nn.Module:
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    backbone = alone(backbone)
    if backbone.get('pretrained'):  # which some download when they are built
        backbone.pretrained = type(backbone.pretrained)()
    try:
        with torch.random.fork_rng(devices=[]):
            return MODELS.build(backbone)
    except Exception as error:  # of any backbone's constructor
        raise UserError(
            f'{cfg.filename or "the config"}: what its backbone returns is unknown, as it cannot be built: '
            f'{type(error).__name__}: {error}'
        ) from error


def _refuse_dependence(detector: ConfigDict) -> None:
    """Raises SwapError where something else than channel numbers depends on the backbone."""
    for path, node in dicts_of(detector, 'model'):
        own = [key for key in node if key.endswith('_backbone')] if path.startswith('model.neck') else []
        if own:
            raise SwapError(
                f'{path} holds a backbone of its own ({own[0]}), which is fed with maps of this one'
            )
        if path.endswith('.shared_head') and 'in_channels' not in node:
            kind = node.get('type')
            raise SwapError(f'{path} ({kind}) is the last stage of the old backbone and reads no other')


def _stages_for(levels: Sequence[Level], arch: str) -> tuple[int, ...]:
    """HCGNet's stages of the strides of these levels."""
    strides = [level.stride for level in levels]
    known = get_variant(arch).stage_strides
    if len(set(strides)) < len(strides):
        raise SwapError(f'the heads read maps of strides {tuple(strides)}; HCGNet has one of each stride')
    if not set(strides) <= set(known):
        raise SwapError(f'the heads read maps of strides {tuple(strides)}; HCGNet has {known}')
    if strides != sorted(strides):
        raise SwapError(f'the heads read maps in the order of strides {tuple(strides)}; HCGNet ascends')
    return tuple(known.index(stride) for stride in strides)


def _frozen_stages(network: nn.Module, indices: Sequence[int]) -> int:
    """HCGNet's stages, counted as in `HCGNet`, whose like in the old backbone gets no gradient.

    By the `frozen_stages` of ResNet and those that follow it; other backbones count layers or blocks by it.
    """
    frozen = getattr(network, 'frozen_stages', -1)
    if frozen < 0 or all(parameter.requires_grad for parameter in network.parameters()):
        return -1
    return min(frozen, indices[-1] + 1)


def _has_pretrained(cfg: Config) -> bool:
    """Whether the old backbone starts from weights of its own, or from those of the whole detector."""
    if cfg.get('load_from'):
        return True
    for part in (detector_of(cfg), detector_of(cfg).backbone):
        inits = part.get('init_cfg') or []
        inits = [inits] if isinstance(inits, dict) else inits
        if part.get('pretrained') or any('checkpoint' in init for init in inits):
            return True
    return False


def _norm_cfg(backbone: ConfigDict) -> dict[str, Any]:
    """SyncBN and GN stay; for all else BN, which the weights are for."""
    norm_cfg = backbone.get('norm_cfg') or {}
    if norm_cfg.get('type') == 'GN':
        return dict(type='GN', num_groups=norm_cfg.get('num_groups', 32), requires_grad=True)
    return dict(type='SyncBN' if norm_cfg.get('type') in ('SyncBN', 'MMSyncBN') else 'BN', requires_grad=True)


def _replace_channels(detector: ConfigDict, old: Sequence[int], new: Sequence[int]) -> None:
    """The numbers in what reads the backbone.

    Raises:
        SwapError: Nothing downstream has the old backbone's channel numbers.
    """
    neck = detector.get('neck')
    first = neck[0] if isinstance(neck, (list, tuple)) else neck
    others = [
        node
        for path, node in dicts_of(detector, 'model')
        if path.split('.')[1:2] not in (['backbone'], ['neck']) and 'teacher' not in path
    ]
    found = False
    for reader in [first, *others] if first else others:
        # RoI extractors put out what they take in.
        for key in ('in_channels', 'out_channels') if 'roi_layer' in reader else ('in_channels',):
            value = reader.get(key)
            if first and reader is not first and not isinstance(value, (list, tuple)):
                continue  # a number beside a neck reads the neck
            value = _replaced(value, old, new, one=reader is first)
            if value is not None:
                reader[key] = value
                found = True
    if not found:
        raise SwapError(f'nothing that reads the backbone has `in_channels` of {list(old)}, its channels')
    if first:
        _pass_on(detector, first, old, new)
        try:
            MODELS.build(alone(first))
        except Exception as error:  # of any neck's constructor
            raise SwapError(
                f'model.neck cannot be built for maps of {list(new)} channels: {error}'
            ) from error


def _replaced(value: Any, old: Sequence[int], new: Sequence[int], one: bool) -> Any:
    """`value` with the new channel numbers if it has the old ones, else None.

    `one`: it may read one level of many.
    """
    if isinstance(value, int) and list(old).count(value) == 1 and (one or len(old) == 1):
        return new[list(old).index(value)]
    if isinstance(value, (list, tuple)):
        for step in (1, -1):  # YOLO's necks read from the coarsest level
            if list(value) == list(old)[::step]:
                return type(value)(list(new)[::step])
    return None


def _pass_on(detector: ConfigDict, neck: ConfigDict, old: Sequence[int], new: Sequence[int]) -> None:
    """SSD's neck puts out the maps that it takes in, and adds coarser ones: its heads read both."""
    out = neck.get('out_channels')
    if not isinstance(out, (list, tuple)) or list(out[: len(old)]) != list(old):
        return
    neck.out_channels = type(out)([*new, *out[len(old) :]])
    for path, node in dicts_of(detector, 'model'):
        if not path.startswith(('model.backbone', 'model.neck')) and node.get('in_channels') == out:
            node.in_channels = neck.out_channels


def config_text(base: str, old: Config, new: Config) -> str:
    """A config file that inherits from `base`, which holds `old`, and says what is different in `new`."""
    arch = detector_of(new).backbone.arch.upper()
    difference = _difference(old.model.to_dict(), new.model.to_dict())
    rest = 'load_from = None\n' if old.get('load_from') else ''
    return f'"""HCGNet-{arch} in {base}"""\n\n_base_ = {base!r}\n\nmodel = {_text(difference)}\n{rest}'


def write_config(base: str, old: Config, new: Config, out: str | Path) -> None:
    """Write `config_text` to a new `.py` file; where `base` is a file it gets the path from `out` to it.

    Raises:
        FileExistsError: `out` is there already.
        UserError: The file would not be read as `new`; it is not left there.
    """
    out = Path(out)
    if out.suffix != '.py':
        raise UserError(f'{out} must end in .py')
    if out.exists():
        raise FileExistsError(f'{out} is there already: remove it or name another file')
    if '::' not in base:
        base = Path(os.path.relpath(base, out.resolve().parent)).as_posix()
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open('x', encoding='utf-8') as file:
        file.write(config_text(base, old, new))
    try:
        read, fault = Config.fromfile(out).model, 'it reads differently'
    except Exception as error:  # e.g. a base in pure Python, from which a text config cannot inherit
        read, fault = None, f'{type(error).__name__}: {error}'
    if read is None or _without_scopes(read.to_dict()) != _without_scopes(new.model.to_dict()):
        out.unlink()
        raise UserError(f'{base} cannot be inherited from ({fault}); use mmhcg.swap_backbone in Python')


def _text(value: Any, indent: int = 0) -> str:
    """A value as it stands in a config file, on one line where it fits."""
    if not isinstance(value, (dict, list, tuple)) or not value:
        return repr(value)
    if isinstance(value, dict):
        items = [f'{key}={_text(child, indent + 4)}' for key, child in value.items()]
        start, end = 'dict(', ')'
    else:
        items = [_text(child, indent + 4) for child in value]
        start, end = '[]' if isinstance(value, list) else ('(', ',)' if len(value) == 1 else ')')
    line = f'{start}{", ".join(items)}{end}'
    if len(line) + indent < LINE and '\n' not in line:
        return line
    return (
        f'{start}\n'
        + ''.join(f'{" " * (indent + 4)}{item},\n' for item in items)
        + f'{" " * indent}{end[-1]}'
    )


def _difference(old: dict, new: dict) -> dict:
    """The entries of `new` that are not those of `old`; a backbone whole, as nothing of the old one stays."""
    changed = {}
    for key, value in new.items():
        if key == 'backbone' and value != old[key]:
            changed[key] = {'_delete_': True, **value}
        elif key == '_scope_':  # MMEngine's note of where a type comes from
            continue
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            if below := _difference(old[key], value):
                changed[key] = below
        elif key not in old or value != old[key]:
            changed[key] = _without_scopes(value)
    return changed


def _without_scopes(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(_without_scopes, node)) if isinstance(node, (list, tuple)) else node
