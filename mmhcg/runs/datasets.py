"""Datasets and evaluators of a config: found inside their wrappers, pointed at another folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from mmhcg.runs.config import is_classifier

LAYOUT = 'annotations/instances_{train,val}2017.json, train2017/, val2017/'
SPLITS = {'train': 'train2017', 'val': 'val2017', 'test': 'val2017'}  # COCO publishes no test annotations


def leaf_datasets(cfg: Config, mode: str) -> Iterator[ConfigDict]:
    """The datasets of `{mode}_dataloader` that read files, however deep in RepeatDataset and its kin."""
    loader = cfg.get(f'{mode}_dataloader') or {}
    return _leaves(loader.get('dataset') or [])


def _leaves(node: ConfigDict | list | tuple) -> Iterator[ConfigDict]:
    if isinstance(node, (list, tuple)):
        for child in node:
            yield from _leaves(child)
    elif 'dataset' in node or 'datasets' in node:
        yield from _leaves(node.get('dataset', node.get('datasets')))
    else:
        yield node


def metrics(cfg: Config, mode: str) -> list[ConfigDict]:
    """The metrics of `{mode}_evaluator`: one, a list, or those inside an Evaluator."""
    evaluator = cfg.get(f'{mode}_evaluator') or []
    if isinstance(evaluator, dict):
        evaluator = evaluator.get('metrics', [evaluator])
    return [evaluator] if isinstance(evaluator, dict) else list(evaluator)


def move_data(cfg: Config, data_root: str, cfg_options: dict[str, Any] | None = None) -> None:
    """Point the train, val and test data of `cfg`, evaluators included, at another folder.

    A detector's is in COCO's layout. A classifier's datasets have one name, `data_root`, for where they lie.

    Files that the config names relative to its own `data_root` keep their names below the new one, so that a
    config with several annotation files keeps them apart. Files named in any other way take COCO's names.
    `cfg_options`, which are in the config already, have the last word: a file that they name is that file.
    """
    data_root = os.path.abspath(os.path.expanduser(data_root))
    if is_classifier(cfg):
        for dataset in (dataset for mode in SPLITS for dataset in leaf_datasets(cfg, mode)):
            dataset.data_root = data_root
    else:
        _move_coco(cfg, data_root)
    cfg.merge_from_dict(cfg_options or {})


def _move_coco(cfg: Config, data_root: str) -> None:
    for mode, split in SPLITS.items():
        annotation: Any = f'annotations/instances_{split}.json'
        old_roots = [cfg.get('data_root')]
        for number, dataset in enumerate(leaf_datasets(cfg, mode)):
            old_root = dataset.get('data_root')
            old_roots.append(old_root)
            _move_dataset(dataset, data_root, split)
            if number == 0:
                annotation = dataset.ann_file
        for metric in metrics(cfg, mode):
            if metric.get('ann_file'):
                name = _below(metric.ann_file, old_roots) or annotation
                metric.ann_file = os.path.join(data_root, name)
            if metric.get('seg_prefix') and (name := _below(metric.seg_prefix, old_roots)):
                metric.seg_prefix = os.path.join(data_root, name)
    if 'data_root' in cfg:
        cfg.data_root = data_root


def _move_dataset(dataset: ConfigDict, data_root: str, split: str) -> None:
    old_root = dataset.get('data_root')
    dataset.ann_file = _name(dataset.get('ann_file'), old_root, f'annotations/instances_{split}.json')
    prefixes = dataset.get('data_prefix') or {'img': None}
    layout = {'img': f'{split}/'}
    dataset.data_prefix = {
        key: _name(prefix, old_root, layout.get(key, prefix)) for key, prefix in prefixes.items()
    }
    dataset.data_root = data_root


def _name(path: str | None, root: str | None, otherwise: str) -> str:
    """`path` relative to the `data_root` of its dataset; `otherwise` where it does not lie below it."""
    if path is None or not root:
        return otherwise
    return (_below(path, [root]) or otherwise) if os.path.isabs(path) else path


def _below(path: str, roots: Iterable[str | None]) -> str | None:
    for root in sorted(filter(None, roots), key=len, reverse=True):  # the innermost first
        name = os.path.relpath(path, root)
        if not name.startswith(os.pardir):
            return name
    return None
