"""Checks before a run: one clear message within seconds instead of a traceback after minutes."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner.checkpoint import CheckpointLoader
from torch.nn import Module

from mmhcg.backbone import ONE_IMAGE, HCGNet
from mmhcg.runs.config import build_model, class_name, detector_of, is_classifier, resolve, unregistered
from mmhcg.runs.errors import UserError
from mmhcg.weights.entries import form_fault, tensors_of, value_fault

FEW_IMAGES = 4
FULL_BATCHES_NOTE = (
    "The norms in HCGNet's gates learn, for which one image is too few: an incomplete batch at the end of an "
    'epoch is skipped.'
)
SMALL_BATCH_NOTE = (
    "Fewer than 4 images per GPU are too few for the norms in HCGNet's gates to learn: gradients explode. "
    'Set train_dataloader.batch_size=4 or more, or model.backbone.norm_cfg.type=SyncBN on several GPUs, or '
    'model.backbone.norm_cfg.type=GN model.backbone.norm_cfg.num_groups=32.'
)
TRAINING_STATE = ('meta', 'optimizer', 'message_hub')  # of MMEngine's checkpoints, beside the weights


def check_backbone(cfg: Config) -> Any:
    """The class, or function, of the config's backbone.

    Raises:
        UserError: the config has no model or no backbone, or its framework knows no backbone of that name.
    """
    name = cfg.filename or 'the config'
    backbone: Any = detector_of(cfg).get('backbone')
    if not isinstance(backbone, dict) or 'type' not in backbone:
        raise UserError(
            f"{name} has no `model.backbone` with a `type`, e.g. dict(type='mmhcg.HCGNet', arch='b')"
        )
    framework = 'mmpretrain' if is_classifier(cfg) else 'mmdet'
    registry = import_module(f'{framework}.registry').MODELS
    found = resolve(backbone, registry)
    if found is None:
        raise UserError(f'{name}: model.backbone.{unregistered(backbone, registry)}')
    return found


def check_parts(cfg: Config, mode: str) -> None:
    """Raises UserError where the config lacks what training, or testing, needs besides the model."""
    name = cfg.filename or 'the config'
    for key in (f'{mode}_dataloader', f'{mode}_cfg', *(('optim_wrapper',) if mode == 'train' else ())):
        if cfg.get(key) is None:
            raise UserError(f'{name} has no `{key}`')
        if not isinstance(cfg[key], dict):
            raise UserError(f'{name}: `{key}` must be a dict, not {cfg[key]!r}')
    scored = 'val' if mode == 'train' else mode
    parts = [f'{scored}_{part}' for part in ('dataloader', 'cfg', 'evaluator')]
    lacking = [part for part in parts if cfg.get(part) is None]
    if lacking and (mode == 'test' or len(lacking) < len(parts)):  # training may do without validation
        raise UserError(f'{name} has no `{lacking[0]}`, which belongs to {" and ".join(parts)}')


def check_seed(cfg: Config) -> None:
    """Raises UserError for a seed that NumPy does not take."""
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise UserError(f'the seed must be a whole number from 0 to {2**32 - 1}, not {seed!r}')


def check_model(cfg: Config) -> Module:
    """The config's model, without numbers where that can be, before the run makes its folder.

    Raises:
        UserError: it cannot be built, or its neck takes other maps than HCGNet's.
    """
    model: Module = _built(cfg, cfg.model)
    backbone = getattr(getattr(model, 'detector', model), 'backbone', None)
    neck = detector_of(cfg).get('neck')
    neck = neck[0] if isinstance(neck, (list, tuple)) and neck else neck
    taken = neck.get('in_channels') if isinstance(neck, dict) else None
    if isinstance(backbone, HCGNet) and isinstance(taken, (list, tuple)):
        given = backbone.out_channels
        if len(taken) == len(given) and sorted(taken) != sorted(given):  # else some, or in the other order
            name = cfg.filename or 'the config'
            raise UserError(
                f'{name}: model.neck.in_channels is {list(taken)}, and HCGNet returns {list(given)}'
            )
    return model


def settle_batches(cfg: Config) -> list[str]:
    """Where norms of HCGNet's gates are to learn, have a detector's batches full; returns what to log.

    The last one of an epoch may be a single image, which they cannot normalise.

    Raises:
        UserError: they are to learn from one image a process.
    """
    backbone, loader = hcgnet_of(cfg), cfg.train_dataloader
    world_size = 1 if cfg.get('launcher', 'none') == 'none' else 2
    if backbone is None or not backbone.train().gates_need_a_batch(world_size):
        return []
    sampler = loader.get('batch_sampler')
    size, notes = (sampler or loader).get('batch_size', loader.get('batch_size', 1)), []
    if size == 1:
        raise UserError(f'train_dataloader.batch_size=1: {ONE_IMAGE}')
    if not is_classifier(cfg):
        if sampler is None:
            loader.drop_last = True
        elif class_name(sampler) == 'AspectRatioBatchSampler':
            sampler.type = 'mmhcg.FullBatchSampler'
        notes.append(FULL_BATCHES_NOTE)
    if isinstance(size, int) and size < FEW_IMAGES:  # `check_data` tells of what is no number
        notes.append(SMALL_BATCH_NOTE)
    return notes


def is_hcgnet(kind: Any) -> bool:
    """Whether this class, or function, of a backbone is HCGNet or its heir."""
    return isinstance(kind, type) and issubclass(kind, HCGNet)


def hcgnet_of(cfg: Config) -> HCGNet | None:
    """The config's backbone if it is HCGNet or its heir, without numbers where that can be."""
    return _built(cfg, detector_of(cfg).backbone) if is_hcgnet(check_backbone(cfg)) else None


def _built(cfg: Config, part: ConfigDict) -> Any:
    with suppress(UserError), torch.device('meta'):  # without memory or random numbers
        return build_model(cfg, part)
    return build_model(cfg, part)  # some constructors need numbers


def check_checkpoint(path: str, resume: bool = False, fetch: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file; addresses (`https://...`) give {} unless they are to be fetched.

    Raises:
        UserError: the file is missing or unreadable, numbers in it are NaN or claimed and not stored, or
            `resume` is set and it holds no training state.
    """
    where = path
    if '://' not in path:
        path = os.path.expanduser(path)
        where = os.path.abspath(path)
        if not os.path.isfile(path):
            raise UserError(f'no checkpoint at {where}')
    elif not fetch:
        return {}
    try:
        checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
    except Exception as error:  # a damaged file fails in many ways; all of them mean the same to the user
        raise UserError(str(error)) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{where} is not a checkpoint: it holds a {type(checkpoint).__name__}')
    for key in ('state_dict', *TRAINING_STATE):
        if key in checkpoint and not isinstance(checkpoint[key], dict):
            raise UserError(f'{where} is not a checkpoint: its `{key}` is not a dict')
    for name, entry in tensors_of(checkpoint):
        fault = form_fault(entry, [entry.dtype])
        if not fault and not name.startswith(('meta.', 'message_hub.')):  # logs may hold anything
            fault = value_fault(name, entry)
        if fault:
            raise UserError(f'checkpoint {where}: {name} {fault}. Take an earlier one')
    lacking = [key for key in TRAINING_STATE if resume and key not in checkpoint]
    if lacking:
        raise UserError(
            f'cannot resume from {where}: it has no {", ".join(lacking)}, so it '
            'holds weights but no training state. To start from these weights: --cfg-options load_from=FILE'
        )
    return checkpoint


def check_amp(cfg: Config) -> None:
    """Raises UserError where mixed precision is asked for and no accelerator is there."""
    from mmengine.device import get_device

    if class_name(cfg.optim_wrapper) == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise UserError(
            'mixed precision (--amp or AmpOptimWrapper) needs a GPU, and PyTorch '
            f'{torch.__version__} sees none: train without it'
        )
