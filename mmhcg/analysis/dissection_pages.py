"""What a dissection found: a table, bars, and a page of the best units over their photographs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import pyplot
from torch import Tensor

from mmhcg.analysis.dissection import TOP, Photos, Unit, regions_of
from mmhcg.analysis.tables import write_rows

ROWS = 12  # units on a page
BARS = 30  # categories in the plot
COLOURS = ('tab:blue', 'silver')
DIM = 0.4  # brightness outside of regions


@dataclass(frozen=True)
class Count:
    """How many units of a network detect a category."""

    network: str
    category: str
    detectors: int


def by_network(units: Sequence[Unit]) -> dict[str, list[Unit]]:
    """Units by the name of their network, in its order."""
    found = defaultdict(list)
    for unit in units:
        found[unit.network].append(unit)
    return dict(found)


def counts(units: Sequence[Unit]) -> list[Count]:
    """Detectors of each network and category, the most frequent first."""
    return [
        Count(network, category, number)
        for network, members in by_network(units).items()
        for category, number in Counter(unit.category for unit in members if unit.detector).most_common()
    ]


def format_table(units: Sequence[Unit]) -> str:
    """A line for each network."""
    lines = []
    for network, members in by_network(units).items():
        detectors = [unit for unit in members if unit.detector]
        unique = len({unit.category for unit in detectors})
        lines.append(
            f'{network}, stage {members[0].stage}: {unique} unique detectors '
            f'(categories), {len(detectors)} detectors among {len(members)} units'
        )
    return '\n'.join(lines)


def save_units(units: Sequence[Unit], path: Path) -> None:
    """Write units to a new CSV file."""
    write_rows([dict(asdict(unit), photos=' '.join(map(str, unit.photos))) for unit in units], path)


def plot_detectors(units: Sequence[Unit], path: Path) -> None:
    """Bars: unique detectors of each network, detectors of each category; beside it, the latter as CSV."""
    rows, networks = counts(units), list(by_network(units))
    number = {(row.network, row.category): row.detectors for row in rows}
    total: Counter[str] = Counter()
    for row in rows:
        total[row.category] += row.detectors
    categories = [category for category, _ in total.most_common(BARS)]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 5), gridspec_kw=dict(width_ratios=(1, 4)), layout='constrained'
    )
    unique = [sum(row.network == network for row in rows) for network in networks]
    bars = left.bar(range(len(networks)), unique, color=COLOURS[: len(networks)])
    left.bar_label(bars)
    left.set_xticks([])
    left.set_title('unique detectors', fontsize='medium')
    width = 0.8 / len(networks)
    for place, network in enumerate(networks):
        heights = [number.get((network, category), 0) for category in categories]
        middles = np.arange(len(categories)) + (place - (len(networks) - 1) / 2) * width
        right.bar(middles, heights, width, color=COLOURS[place], label=network)
    right.set_xticks(range(len(categories)), categories, rotation=90, fontsize='small')
    right.set_title(f'detectors of a category, stage {units[0].stage}', fontsize='medium')
    right.legend(fontsize='small')
    for axis in (left, right):
        axis.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    columns = [field.name for field in fields(Count)]
    write_rows(rows, path.with_suffix('.csv'), columns)


def best_units(units: Sequence[Unit]) -> list[Unit]:
    """The best unit of each category, the best of all first; not more than fit on a page."""
    best: dict[str, Unit] = {}
    for unit in sorted(units, key=lambda unit: -unit.iou):
        best.setdefault(unit.category, unit)
    return list(best.values())[:ROWS]


def draw_page(
    network: Callable[[np.ndarray], Tensor], photos: Photos, units: Sequence[Unit], path: Path
) -> None:
    """A row for each of a network's best units: where it is most active, its regions bright."""
    shown = best_units(units)
    figure, axes = pyplot.subplots(
        len(shown), TOP, figsize=(2.4 * TOP, 2.1 * len(shown)), squeeze=False, layout='constrained'
    )
    for axis in axes.flat:
        axis.axis('off')
    places = defaultdict(list)  # number of a photograph -> where it is shown
    for unit, row in zip(shown, axes):
        kind = 'detector' if unit.detector else 'no detector'
        row[0].set_title(
            f'unit {unit.unit}: {unit.category}, IoU {unit.iou:.3f} ({kind})', fontsize='small', loc='left'
        )
        for key, axis in zip(unit.photos, row):
            places[photos.ids.index(key)].append((unit, axis))
    for number, members in places.items():
        photo = photos.image(number)
        feat = network(photo)
        for unit, axis in members:
            axis.imshow(_lit(photo, feat[unit.unit], unit.threshold)[..., ::-1])
    figure.suptitle(f'{units[0].network}, stage {units[0].stage}', fontsize='small')
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _lit(photo: np.ndarray, feat: Tensor, threshold: float) -> np.ndarray:
    """A photograph (H, W, 3) that is dark where a unit's map (h, w) is below its threshold."""
    region = (
        regions_of(feat[None], feat.new_tensor([threshold], dtype=torch.double), photo.shape[:2])[0]
        .cpu()
        .numpy()
    )
    lit = np.where(region[..., None], photo, (photo * DIM).astype(np.uint8))
    outlines, _ = cv2.findContours(region.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(lit, outlines, -1, (0, 255, 255), 1)
