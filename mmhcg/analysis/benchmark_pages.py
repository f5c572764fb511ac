"""What `tools/benchmark.py` shows of its results: a table, and bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmhcg.analysis.benchmark import Result
from mmhcg.analysis.tables import align


def format_table(results: Sequence[Result]) -> str:
    """What differs between results, a line each."""
    columns = ['candidate', 'best_ms', 'median_ms', 'images_per_s', 'peak_mb', 'saved_mb', 'operators']
    columns += ['moved_mb', 'to_plain', 'to_r50']
    return align([columns, *([str(getattr(result, column)) for column in columns] for result in results)])


def plot(results: Sequence[Result], path: Path) -> None:
    """Draw time and memory of each candidate as bars; the plain formulation's and ResNets' in grey."""
    from matplotlib import pyplot

    shown = {'best_ms': 'milliseconds a step', 'saved_mb': 'MB kept for the backward pass'}
    shown |= {'moved_mb': 'MB that operators take in and put out', 'peak_mb': 'most MB on the GPU'}
    columns = [column for column in shown if all(getattr(result, column) != '' for result in results)]
    figure, axes = pyplot.subplots(1, len(columns), figsize=(4.5 * len(columns), 3.2), squeeze=False)
    for axis, column in zip(axes[0], columns):
        bars = axis.barh(
            [result.candidate for result in results],
            [getattr(result, column) for result in results],
            color=['tab:blue' if result.candidate[0] in 'bc' else 'silver' for result in results],
        )
        axis.bar_label(bars, padding=3)
        axis.margins(x=0.2)
        axis.invert_yaxis()
        axis.set_title(shown[column], fontsize='medium')
        axis.spines[['top', 'right']].set_visible(False)
    first = results[0]
    figure.suptitle(
        f'{first.model}, {first.phase}, {first.mode}, {first.dtype}, {first.shape}; {first.machine}',
        fontsize='small',
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
