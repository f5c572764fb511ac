"""How much of a classifier's accuracy, or of a detector's box AP, is left under attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import DATASETS, init_default_scope

from mmhcg.analysis.tables import align, distinct, machine, read_table, software, spread_over
from mmhcg.installation import hint
from mmhcg.runs import UserError
from mmhcg.runs.config import class_name, is_classifier, load_config
from mmhcg.runs.data_checks import check_data
from mmhcg.runs.datasets import leaf_datasets, metrics, move_data
from mmhcg.runs.launch import test

SCORES = {'top1': ('top1', 100), 'bbox_mAP': ('box AP', 1)}  # evaluators' numbers: name here, best value


@dataclass(frozen=True)
class Row:
    """A network's score at one strength of an attack.

    Attributes:
        source: 'paper' or 'measured here'.
        network: Its name.
        config: Whose network, or whose data where the network is one of torchvision's.
        data: What was tested on.
        attack: 'fgsm' or 'pgd'.
        eps: Largest change of a pixel whose values go from 0 to 1.
        metric: 'top1' or 'box AP'.
        value: The score, from 0 to 1.
        images: How many were scored.
        machine, software, date: Of the measurement.
    """

    source: str
    network: str
    config: str
    data: str
    attack: str
    eps: float
    metric: str
    value: float
    images: int
    machine: str
    software: str
    date: str


def names_of(networks: Sequence[Sequence[str]]) -> list[str]:
    """A name for each network and its weights: the config's or torchvision's, if need be with the weights.

    Raises:
        UserError: a pair is given twice.
    """
    stems = [Path(network).stem for network, _ in networks]
    names = distinct(stems, [f'{stem} ({file})' for stem, (_, file) in zip(stems, networks)])
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f'{twice} is given twice, or two configs have its name: rename one')
    return names


def measure(
    cfg: Config, checkpoint: str | Path, eps: Sequence[float], attack: str = 'fgsm', network: str = ''
) -> Iterator[Row]:
    """Test once for each strength, as `mmhcg.runs.test` does it; yields each score as soon as it is there.

    Args:
        cfg: From `prepare`.
        checkpoint: The weights.
        eps: Strengths: largest changes of pixels whose values go from 0 to 1.
        attack: 'fgsm' or 'pgd'; `mmhcg.analysis.attacks` says what they do.
        network: A name for the rows (default: the config file's).

    Raises:
        UserError: what was given cannot work.
    """
    config = Path(cfg.filename or 'config').stem
    dataset = next(leaf_datasets(cfg, 'test'))
    for strength in eps:
        hook = dict(type='AttackHook', attack=attack, eps=strength)
        found = test(cfg, checkpoint, cfg_options=dict(custom_hooks=[*(cfg.get('custom_hooks') or []), hook]))
        name, score = next((name, score) for name in SCORES if (score := _score(found, name)) is not None)
        yield Row(
            'measured here',
            network or config,
            config,
            f'{class_name(dataset)} {dataset.get("ann_file") or dataset.get("data_prefix") or ""}'.strip(),
            attack,
            strength,
            SCORES[name][0],
            round(score / SCORES[name][1], 4),
            int(found['images']),
            machine(torch.device(get_device())),
            software(),
            date.today().isoformat(),
        )


def prepare(
    config: str | Path | Config,
    data_root: str | Path | None = None,
    limit: int | None = None,
    cfg_options: dict[str, Any] | None = None,
) -> Config:
    """The config as its test can be attacked: with the ground truth that a loss needs, on `limit` images.

    Args:
        config: Of an mmpretrain ImageClassifier whose test has Accuracy, or of an MMDetection detector whose
            test has a CocoMetric of boxes, with an annotation file.
        data_root: A folder in COCO's layout that replaces a detector's data.
        limit: Most images to test on, spread evenly over the test set; replaces the dataset's `indices`.
        cfg_options: Replaces config entries.

    Raises:
        UserError: the config, its data or a library is not there, or its test has no such metric.
    """
    cfg = load_config(config, cfg_options)
    _import('mmhcg.analysis.attacks', 'foolbox', 'attack')  # registers AttackHook
    if is_classifier(cfg):
        _import('mmpretrain.models', 'mmpretrain', 'pretrain')
    _check_metric(cfg)
    if data_root is not None:
        move_data(cfg, str(data_root), cfg_options)
    check_data(cfg, ('test',))
    if not is_classifier(cfg):
        for dataset in leaf_datasets(cfg, 'test'):
            dataset.pipeline = _with_ground_truth(cfg, dataset.pipeline)
    if limit is not None:
        _limit(cfg, limit)
    cfg.setdefault('randomness', ConfigDict(seed=0))  # samplers of losses and random starts draw
    return cfg


def _import(module: str, library: str, extra: str) -> None:
    try:
        import_module(module)
    except ImportError as error:
        raise UserError(f'{library} cannot be imported ({error}): {hint(extra)}') from error


def _check_metric(cfg: Config) -> None:
    """Raises UserError where the test gives neither of the two scores."""
    for metric in metrics(cfg, 'test'):
        name = class_name(metric)
        boxes = name in ('CocoMetric', 'CocoTwelve') and 'bbox' in _as_list(metric.get('metric', 'bbox'))
        if is_classifier(cfg) and name == 'Accuracy' and 1 in _as_list(metric.get('topk', 1)):
            return
        if not is_classifier(cfg) and boxes and metric.get('ann_file'):
            return
    wanted = 'Accuracy with topk=1' if is_classifier(cfg) else "CocoMetric with metric='bbox' and an ann_file"
    raise UserError(
        f'{cfg.filename or "the config"}: test_evaluator has no {wanted}, the score to be measured'
    )


def _as_list(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _with_ground_truth(cfg: Config, pipeline: Sequence[ConfigDict]) -> list[ConfigDict]:
    """A test pipeline whose samples carry boxes (and masks) at the size of the image that the model sees.

    Test pipelines read annotations after the image was resized, or not at all; losses want them resized with
    it. What to read is what training reads.
    """

    def reads(step: ConfigDict) -> bool:
        return class_name(step) == 'LoadAnnotations'

    trained = [step for dataset in leaf_datasets(cfg, 'train') for step in dataset.get('pipeline') or []]
    reading = next(filter(reads, [*trained, *pipeline]), ConfigDict(type='LoadAnnotations', with_bbox=True))
    rest = [step for step in pipeline if not reads(step)]
    place = next((i for i, step in enumerate(rest, 1) if 'LoadImage' in class_name(step)), 0)
    return [*rest[:place], reading, *rest[place:]]


def _limit(cfg: Config, limit: int) -> None:
    leaves = list(leaf_datasets(cfg, 'test'))
    if limit < 1:
        raise UserError(f'--limit must be positive, not {limit}')
    if len(leaves) != 1:
        raise UserError(f'--limit {limit}: the test has {len(leaves)} datasets, and it can limit only one')
    leaves[0].pop('indices', None)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    leaves[0].indices = spread_over(len(DATASETS.build(leaves[0])), limit)


def _score(found: Mapping[str, Any], name: str) -> float | None:
    return next((value for key, value in found.items() if key.split('/')[-1] == name), None)


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file that `mmhcg.analysis.tables.write_rows` wrote."""
    numbers = dict(eps=float, value=float, images=int)
    rows = read_table(path)
    return [Row(**{key: numbers.get(key, str)(value) for key, value in row.items()}) for row in rows]


def format_table(rows: Sequence[Row]) -> str:
    """A line for each network, a column for each strength."""
    eps = sorted({row.eps for row in rows})
    cells = [[f'{rows[0].metric} under {rows[0].attack}, eps', *(f'{e:g}' for e in eps)]]
    for label, values in curves(rows).items():
        cells.append([label, *(f'{values[e]:.3f}' if e in values else '-' for e in eps)])
    return align(cells)


def curves(rows: Sequence[Row]) -> dict[str, dict[float, float]]:
    """Strength -> score of each network; the paper's are marked as such."""
    found: dict[str, dict[float, float]] = {}
    for row in rows:
        label = f'{row.network} (paper)' if row.source == 'paper' else row.network
        found.setdefault(label, {})[row.eps] = row.value
    return found


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw scores over strengths, a line for each network; the paper's in grey."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    line = max(row.value for row in rows) / 22  # as high as a label
    free = 0.0
    for label, values in sorted(curves(rows).items(), key=lambda curve: curve[1][max(curve[1])]):
        strengths = sorted(values)
        style = dict(color='silver', zorder=1) if label.endswith('(paper)') else dict(marker='o')
        axis.plot(strengths, [values[e] for e in strengths], **style)
        end = max(values[strengths[-1]], free)  # else labels of curves that meet would cover each other
        axis.annotate(f'  {label}', (strengths[-1], end), fontsize='small', va='center')
        free = end + line
    axis.set_xlabel('largest change of a pixel (0 to 1)')
    axis.set_ylabel(rows[0].metric)
    axis.set_ylim(bottom=0)
    axis.margins(x=0.02)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_title(f'{rows[0].attack}, {rows[0].data}, {rows[0].images} images', fontsize='small')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches='tight')
    pyplot.close(figure)
