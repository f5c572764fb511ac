"""What is different where a config trains a classifier with mmpretrain instead of a detector."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmhcg.data.cifar import cifar_files, read_cifar
from mmhcg.runs.config import class_name
from mmhcg.runs.datasets import leaf_datasets
from mmhcg.runs.errors import UserError

IMAGENET_LAYOUT = 'train/CLASS/*.JPEG and val/CLASS/*.JPEG, or lists meta/{train,val}.txt of files and labels'


def num_classes(cfg: Config) -> int | None:
    """Of a classifier's head; None for a detector, and where the head has none, as in self-supervision."""
    return (cfg.model.get('head') or {}).get('num_classes')


def check_classification_data(cfg: Config, modes: Sequence[str]) -> None:
    """The files of ImageNet and CIFAR; other datasets are left to mmpretrain.

    Raises:
        UserError: a file or folder is missing or not what it should be, or its classes are not the head's.
    """
    checks = {'ImageNet': _check_imagenet, 'CIFARBinary': _check_cifar}
    for mode in modes:
        for dataset in leaf_datasets(cfg, mode):
            if check := checks.get(class_name(dataset)):
                check(f'{mode}_dataloader', dataset, num_classes(cfg))


def _check_imagenet(where: str, dataset: ConfigDict, classes: int | None) -> None:
    root, split = dataset.get('data_root', ''), dataset.get('split')
    if not split or dataset.get('data_prefix') or dataset.get('ann_file'):  # files in a layout of their own
        return
    folder = Path(root, split)
    hint = f'--data-root DIR names the folder that holds {IMAGENET_LAYOUT}'
    if not folder.is_dir():
        raise UserError(f'{where}: no folder {folder.absolute()}. {hint}')
    if Path(root, 'meta', f'{split}.txt').is_file():
        return
    with os.scandir(folder) as entries:
        found = sum(entry.is_dir() for entry in entries)
    if classes is not None and found != classes:
        raise UserError(
            f'{where}: {folder.absolute()} has {found} folders, one a class, and the head {classes} classes. '
            f'{hint}'
        )


def _check_cifar(where: str, dataset: ConfigDict, classes: int | None) -> None:
    own = dataset.get('classes', 10)
    if classes is not None and own != classes:
        raise UserError(f'{where}: CIFAR-{own} for a head of {classes} classes; set one to the other')
    try:
        for file in cifar_files(dataset.data_root, own, dataset.split):
            read_cifar(file, own)
    except (OSError, ValueError) as error:
        raise UserError(f'{where}: {error}. --data-root DIR names the folder above it') from error
