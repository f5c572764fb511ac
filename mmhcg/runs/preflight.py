"""Checks before a run: one clear message within seconds instead of a traceback after minutes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.utils import is_abs

from mmhcg.runs.classification import check_classification_data
from mmhcg.runs.config import detector_of, is_classifier
from mmhcg.runs.datasets import LAYOUT, leaf_datasets, metrics
from mmhcg.runs.errors import UserError


def check_backbone(cfg: Config) -> type:
    """The class of the config's backbone.

    Raises:
        UserError: the config has no model or no backbone, or its framework knows no backbone of that name.
    """
    name = cfg.filename or 'the config'
    backbone = detector_of(cfg).get('backbone')
    if not isinstance(backbone, dict) or 'type' not in backbone:
        raise UserError(
            f"{name} has no `model.backbone` with a `type`, e.g. dict(type='mmhcg.HCGNet', arch='b')"
        )
    if isinstance(backbone.type, type):
        return backbone.type
    framework = 'mmpretrain' if is_classifier(cfg) else 'mmdet'
    found = import_module(f'{framework}.registry').MODELS.get(backbone.type)
    if found is None:
        raise UserError(f'{name}: model.backbone.type={backbone.type!r} is not registered')
    return found


def check_checkpoint(path: str, resume: bool = False) -> dict[str, Any]:
    """The content of a checkpoint file; addresses (`https://...`) are left to MMEngine and give {}.

    Raises:
        UserError: the file is missing or unreadable, or `resume` is set and it holds no training state.
    """
    from mmhcg.stack.checkpoints import load_checkpoint_file

    if '://' in path:
        return {}
    if not os.path.isfile(path):
        raise UserError(f'no checkpoint at {os.path.abspath(path)}')
    try:
        checkpoint = load_checkpoint_file(path)
    except Exception as error:  # a damaged file fails in many ways; all of them mean the same to the user
        raise UserError(str(error)) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'{os.path.abspath(path)} is no checkpoint: it holds a {type(checkpoint).__name__}')
    lacking = [key for key in ('meta', 'optimizer', 'message_hub') if resume and key not in checkpoint]
    if lacking:
        raise UserError(
            f'cannot resume from {os.path.abspath(path)}: it has no {", ".join(lacking)}, so it '
            'holds weights but no training state. To start from these weights: --cfg-options load_from=FILE'
        )
    return checkpoint


def check_data(cfg: Config, modes: Sequence[str]) -> None:
    """Files, class names and images of these dataloaders, the first of which must be there.

    Raises:
        UserError: a file is missing or unreadable, or classes of the config are not those of the file.
    """
    if not cfg.get(f'{modes[0]}_dataloader'):
        raise UserError(f'{cfg.filename or "the config"} has no `{modes[0]}_dataloader`')
    if is_classifier(cfg):
        check_classification_data(cfg, modes)
        return
    datasets = [(f'{mode}_dataloader', dataset) for mode in modes for dataset in leaf_datasets(cfg, mode)]
    wanted = [(where, _below_root(dataset, dataset.get('ann_file'))) for where, dataset in datasets]
    wanted += [
        (f'{mode}_evaluator', metric.get('ann_file')) for mode in modes for metric in metrics(cfg, mode)
    ]
    missing = [f'  {where}: {os.path.abspath(path)}' for where, path in wanted if _is_missing(path)]
    if missing:
        raise UserError(
            'no annotation file where the config looks for one:\n' + '\n'.join(missing) + '\n'
            f"--data-root DIR points all of them at a folder in COCO's layout ({LAYOUT})"
        )
    read = lru_cache(_read_annotations)  # loaders may share a file of hundreds of megabytes
    for where, dataset in datasets:
        _check_coco(where, dataset, read)


def check_amp(cfg: Config) -> None:
    """Raises UserError where mixed precision is asked for and no accelerator is there."""
    from mmengine.device import get_device

    if cfg.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise UserError(
            'mixed precision (--amp or AmpOptimWrapper) needs a GPU, and PyTorch '
            f'{torch.__version__} sees none: train without it'
        )


def _check_coco(where: str, dataset: ConfigDict, read: Callable) -> None:
    """Class names and the first image of a COCO-format dataset; other formats are left to MMDetection."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    cls = DATASETS.get(dataset.type) if isinstance(dataset.type, str) else dataset.type
    path = _below_root(dataset, dataset.get('ann_file'))
    # A dataset with its own way to read annotations may also number classes in its own way.
    if cls is None or getattr(cls, 'load_data_list', None) is not CocoDataset.load_data_list:
        return
    if not path or not os.path.isfile(path):
        return
    names, image = read(path)
    classes = _classes(dataset, cls)
    if classes:
        _check_classes(f'{where}: {path}', classes, names)
    if image is None or (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
        return
    prefix = (dataset.get('data_prefix') or {}).get('img', '')
    image = os.path.join(_below_root(dataset, prefix) or '', image)
    if _is_missing(image):
        raise UserError(
            f'{where}: no image at {os.path.abspath(image)}, the first one that {path} lists. '
            f'The folder comes from data_root={dataset.get("data_root")!r} and data_prefix.img={prefix!r}; '
            '--data-root sets both'
        )


def _check_classes(where: str, classes: Sequence[str], names: Sequence[str]) -> None:
    """MMDetection numbers labels in the file's order and skips absent names, which shifts all later ones."""
    absent = [name for name in classes if name not in names]
    present = [name for name in names if name in classes]
    if not absent and present == list(classes):
        return
    fault = f'lacks {len(absent)} of them, e.g. {absent[0]!r}' if absent else 'has them in another order'
    raise UserError(
        f'class names of the config are not those of the annotation file, which {fault}; labels would be '
        f'shifted silently.\n  {where}\n  config ({len(classes)}): {list(classes)}\n'
        f'  file ({len(names)}): {list(names)}\n'
        "Set the dataset's metainfo=dict(classes=(...)) in the file's order, and num_classes of the heads"
    )


def _classes(dataset: ConfigDict, cls: type) -> list[str]:
    classes = (dataset.get('metainfo') or {}).get('classes') or cls.METAINFO.get('classes') or ()
    return list_from_file(classes) if isinstance(classes, str) else list(classes)


def _read_annotations(path: str) -> tuple[tuple[str, ...], str | None]:
    """Category names in the file's order, and the file name of the first image where the format has one."""
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        names = tuple(category['name'] for category in content['categories'])
        images = content['images']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path} is not a readable COCO annotation file: {type(error).__name__}: {error}'
        ) from error
    if not images:
        raise UserError(f'{path} lists no images')
    return names, images[0].get('file_name')


def _below_root(dataset: ConfigDict, name: str | None) -> str | None:
    root = dataset.get('data_root') or ''
    return name if not name or is_abs(name) else os.path.join(root, name)


def _is_missing(path: str | None) -> bool:
    return bool(path) and '://' not in path and not os.path.isfile(path)
