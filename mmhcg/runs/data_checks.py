"""The part of the checks before a run that reads its annotation files and looks for its images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict
from mmengine.utils import is_abs

from mmhcg.data.annotations import AnnotationFile
from mmhcg.data.faults import ANY_MASKS, OBJECTS, Fault, Tally, Use
from mmhcg.data.images import absent_images
from mmhcg.runs.classes import check_heads, check_names, classes_of
from mmhcg.runs.classification import check_classification_data
from mmhcg.runs.config import dicts_of, is_classifier, resolve
from mmhcg.runs.datasets import LAYOUT, leaf_datasets, metrics
from mmhcg.runs.errors import UserError
from mmhcg.runs.processes import is_first


class Reader(NamedTuple):
    """A dataset or metric that reads an annotation file: its place in the config, what for and what with."""

    where: str
    path: str
    use: Use
    classes: list[str]
    folder: str | None = None  # of the images that it reads, if it does
    drops_empty: bool = False  # and whether it passes over images without objects of its classes


def check_data(cfg: Config, modes: Sequence[str]) -> list[str]:
    """Annotation files, class names and images of these dataloaders, the first of which must be there.

    Of several processes only the first reads the files; where it stops, the launcher ends the others.

    Returns what MMDetection will skip, for the log: a text for each annotation file.

    Raises:
        UserError: a file is missing, classes of the config, the files and the heads differ, or something in
            the files would crash the run or invalidate its result.
    """
    if not cfg.get(f'{modes[0]}_dataloader'):
        raise UserError(f'{cfg.filename or "the config"} has no `{modes[0]}_dataloader`')
    for mode in modes:
        _check_loader(cfg, mode)
    if is_classifier(cfg):
        check_classification_data(cfg, modes)
        return []
    wanted = [(f'{mode}_dataloader', part) for mode in modes for part in leaf_datasets(cfg, mode)]
    wanted += [(f'{mode}_evaluator', part) for mode in modes for part in metrics(cfg, mode)]
    paths = [(where, _annotation_path(part)) for where, part in wanted]
    missing = [
        f'  {where}: {os.path.abspath(path)}' for where, path in paths if path and not os.path.isfile(path)
    ]
    if missing:
        raise UserError(
            'no annotation file where the config looks for one:\n' + '\n'.join(missing) + '\n'
            f"--data-root DIR points all of them at a folder in COCO's layout ({LAYOUT})"
        )
    if not is_first(cfg.get('launcher')):
        return []
    readers = [reader for mode in modes for reader in _readers(cfg, mode)]
    notes = [_check_file(path, readers) for path in {reader.path: 0 for reader in readers}]
    return [note for note in notes if note]


def _check_loader(cfg: Config, mode: str) -> None:
    """What the data loader needs; MMEngine fails of it when the run's folder is there."""
    key = f'{mode}_dataloader'
    loader = cfg.get(key)
    if loader is None:
        return
    if not isinstance(loader, dict) or not loader.get('dataset'):
        raise UserError(f'{cfg.filename or "the config"}: `{key}` must be a dict with a `dataset`')
    size = loader.get('batch_size', 1)
    if not isinstance(size, int) or size < 1:
        raise UserError(f'{key}.batch_size must be 1 or more, not {size!r}')


def _check_file(path: str, readers: Iterable[Reader]) -> str | None:
    """Check one file for all that read it; returns what is skipped of it."""
    readers = [reader for reader in readers if reader.path == path]
    use = Use(0)
    for reader in readers:
        use |= reader.use
    classes = {name for reader in readers for name in reader.classes}
    file, tally = AnnotationFile(path, use, classes), Tally()
    for fault in file.faults():
        tally.add(fault)
    for folder, drops_empty in {(reader.folder, reader.drops_empty): 0 for reader in readers}:
        if folder is not None:
            for fault in absent_images(file, folder, with_objects=drops_empty):
                tally.add(fault)
    if tally.first(stops=True):
        raise UserError(_message(file, readers, tally))
    for reader in readers:
        if reader.classes:
            check_names(f'{reader.where}: {path}', reader.classes, list(file.categories.values()))
    if not tally.counts:
        return None
    counts = tally.summary(stops=False)
    return f'{path} has what will be skipped or looks wrong: {counts}\n{_lines(tally.first(stops=False))}'


def _message(file: AnnotationFile, readers: Sequence[Reader], tally: Tally) -> str:
    stopping = tally.first(stops=True)
    folder = next((reader.folder for reader in readers if reader.folder is not None), 'IMG_DIR')
    of = ' and '.join(reader.where for reader in readers)
    text = (
        f'{file.path}, of {of}, or its images would crash the run or invalidate its result: '
        f'{tally.summary(stops=True)}\n{_lines(stopping)}\n'
        f'All faults, damaged images included: mmhcg check_data {file.path} {folder}'
        f'{"" if file.use & ANY_MASKS else " --no-masks"}'
    )
    if any(fault.kind == 'missing image' for fault in stopping):
        text += "\nThe folder is the dataset's data_root and data_prefix.img; --data-root sets both"
    return text


def _lines(faults: Sequence[Fault]) -> str:
    return '\n'.join(f'  {fault}' for fault in faults)


def _readers(cfg: Config, mode: str) -> Iterator[Reader]:
    """What reads COCO's format in this mode; other formats are MMDetection's."""
    scored: list[str] = []
    for reader, things in _dataset_readers(cfg, mode):
        scored = things
        yield reader
    yield from _metric_readers(cfg, mode, scored)


def _dataset_readers(cfg: Config, mode: str) -> Iterator[tuple[Reader, list[str]]]:
    """The datasets, whose heads are checked; each with the classes that CocoMetric can score in it."""
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    scoring = any(map(_scores, metrics(cfg, mode)))
    for dataset in leaf_datasets(cfg, mode):
        where, cls = f'{mode}_dataloader', resolve(dataset, DATASETS)
        path = _annotation_path(dataset)
        # A dataset with its own way to read annotations may also number classes in its own way.
        coco = getattr(cls, 'load_data_list', None) is CocoDataset.load_data_list
        if not coco or not path:
            continue
        use = _use(dataset)
        unlabelled = mode == 'train' and not use & OBJECTS
        classes = [] if unlabelled else classes_of(where, dataset, cls)
        panoptic = cls.COCOAPI is not CocoDataset.COCOAPI  # other annotations, and heads that count stuff
        if classes and not panoptic:
            check_heads(cfg, where, classes)
        if panoptic or (mode != 'train' and not scoring):  # a test set need not have annotations
            use = Use.IMAGES
        images = _below_root(dataset, (dataset.get('data_prefix') or {}).get('img', ''))
        # Which images `indices` leaves is MMEngine's to know.
        elsewhere = dataset.get('indices') is not None or '://' in images or not _reads_files(dataset)
        folder = None if elsewhere else images
        drops_empty = bool((dataset.get('filter_cfg') or {}).get('filter_empty_gt') and use & OBJECTS)
        reader = Reader(where, path, use, classes, folder, drops_empty and not dataset.get('test_mode'))
        yield reader, [] if panoptic else classes  # CocoMetric scores things alone, in a file without stuff


def _metric_readers(cfg: Config, mode: str, classes: list[str]) -> Iterator[Reader]:
    """The metrics that score by COCO's rules, of these classes."""
    from mmdet.evaluation import CocoMetric
    from mmdet.registry import METRICS

    from mmhcg.runs.coco_metric import CocoTwelve

    for metric in metrics(cfg, mode):
        cls, path = resolve(metric, METRICS), _annotation_path(metric)
        coco = cls is CocoTwelve or getattr(cls, 'compute_metrics', None) is CocoMetric.compute_metrics
        if coco and path and not metric.get('sort_categories'):
            use = Use.IMAGES
            if _scores(metric):
                scored: Any = metric.get('metric', 'bbox')
                use = Use.SCORE | Use.SCORE_MASKS if 'segm' in scored else Use.SCORE
            yield Reader(f'{mode}_evaluator', path, use, classes)


def _scores(metric: ConfigDict) -> bool:
    return not metric.get('format_only')


def _use(dataset: ConfigDict) -> Use:
    """What the dataset's pipeline reads of an annotation: nothing of an unlabelled set's."""
    from mmdet.datasets.transforms import LoadAnnotations
    from mmdet.registry import TRANSFORMS

    use = Use.IMAGES
    for _, step in dicts_of(dataset.get('pipeline') or []):
        cls = resolve(step, TRANSFORMS)
        if isinstance(cls, type) and issubclass(cls, LoadAnnotations):
            use |= Use.BOXES | Use.MASKS if step.get('with_mask') else Use.BOXES
    return use


def _reads_files(dataset: ConfigDict) -> bool:
    """Whether its pipeline reads images from a local disk, and needs all of them."""
    steps = [step for _, step in dicts_of(dataset.get('pipeline') or [])]
    return all(_is_local(step) and not step.get('ignore_empty') for step in steps)


def _is_local(part: ConfigDict) -> bool:
    return (part.get('backend_args') or {}).get('backend', 'local') == 'local'


def _annotation_path(part: ConfigDict) -> str | None:
    """The file on a local disk that a dataset or metric reads, if it is there that it looks for one."""
    name = part.get('ann_file')
    path = _below_root(part, name) if name else ''
    return path if path and _is_local(part) and '://' not in path else None


def _below_root(dataset: ConfigDict, name: str) -> str:
    return name if is_abs(name) else os.path.join(dataset.get('data_root') or '', name)
