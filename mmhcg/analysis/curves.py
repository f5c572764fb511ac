"""Training runs beside each other: their losses and scores as curves, and what they cost as a table.

Read from what MMEngine writes while it trains, `WORK_DIR/TIME/vis_data/scalars.json`: a JSON object a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from mmhcg.analysis.tables import align, distinct, write_rows
from mmhcg.runs.errors import UserError

SCORES = {  # what the keys end in, after e.g. `coco/`: name here, and what makes percent of it
    'bbox_mAP': ('box AP', 100),
    'segm_mAP': ('mask AP', 100),
    'top1': ('top-1 accuracy', 1),
}
NAMES = [name for name, _ in SCORES.values()]
NUMBERS = {'step', 'loss', 'time', 'memory', *SCORES}  # what the keys end in that are read here
POINT = ('run', 'what', 'iteration', 'value')  # of a curve, as a row


@dataclass
class Run:
    """What was logged of one run, resumed or not.

    Attributes:
        name: For tables and legends.
        train: Iteration to loss, `time` (seconds an iteration), `memory` (MB on the GPU) and the like.
        scores: Iteration to AP or accuracy in percent by `NAMES`.
    """

    name: str
    train: dict[int, dict[str, Any]] = field(default_factory=dict)
    scores: dict[int, dict[str, float]] = field(default_factory=dict)

    def curve(self, what: str) -> tuple[list[int], list[float]]:
        """Iterations and values of 'loss' or of one of `NAMES`, as far as there are any."""
        lines = self.train if what == 'loss' else self.scores
        points = [(step, line[what]) for step, line in sorted(lines.items()) if what in line]
        return [step for step, _ in points], [value for _, value in points]

    def row(self) -> dict[str, Any]:
        """The run as a line of the table; what was not logged is empty."""
        times = [line['time'] for line in self.train.values() if 'time' in line]
        memory = [line['memory'] for line in self.train.values() if 'memory' in line]
        losses = self.curve('loss')[1]
        row = dict(run=self.name, iterations=max(self.train, default=0))
        row['last_loss'] = round(losses[-1], 4) if losses else ''
        for name in NAMES:
            values, column = self.curve(name)[1], name.replace(' ', '_')
            row[f'best_{column}'], row[f'last_{column}'] = (max(values), values[-1]) if values else ('', '')
        row['peak_mb'] = max(memory, default='')
        row['ms_per_iteration'] = round(median(times) * 1e3, 1) if times else ''
        return row


def read_runs(work_dirs: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, named by them; UserError where one has no log."""
    paths = [Path(work_dir) for work_dir in work_dirs]
    names = distinct([path.resolve().name for path in paths], list(map(str, paths)))
    return [_read_run(path, name) for path, name in zip(paths, names)]


def _read_run(work_dir: Path, name: str) -> Run:
    """Join the logs of a run. The folders' names are times, so that their order is that of the starts."""
    if not work_dir.is_dir():
        raise UserError(f'no folder {work_dir.resolve()}')
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    run = Run(name)
    for log in logs:
        lines = list(_lines(log))
        first = next((line['step'] for line in lines if 'loss' in line), math.inf)
        # A run goes on from its last checkpoint, which may be older than the last lines of the log before.
        run.train = {step: line for step, line in run.train.items() if step < first}
        run.scores = {step: scores for step, scores in run.scores.items() if step < first}
        step = max(run.train, default=0)
        for line in lines:
            if 'loss' in line:
                step = line['step']
                run.train[step] = line
            elif scores := _scores(line):  # their own `step` may count epochs
                run.scores[step] = scores
    if not run.train and not run.scores:
        what = f'{len(logs)} empty ones' if logs else 'none'
        raise UserError(
            f'{work_dir.resolve()} is no work dir of a training run: it should hold logs '
            f'TIME/vis_data/scalars.json and holds {what}'
        )
    return run


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    lines = log.read_text(encoding='utf-8', errors='replace').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            if not isinstance(found, dict) or 'step' not in found:
                raise ValueError('no dict with a `step`')
            for key, value in found.items():
                if key.rpartition('/')[2] in NUMBERS and not isinstance(value, (int, float)):
                    raise ValueError(f'`{key}` is {value!r} and no number')
            yield found
        except ValueError as error:
            if number < len(lines):  # the last one is torn where a run was killed
                raise UserError(f'{log}: line {number} is damaged: {error}') from error


def _scores(line: dict[str, Any]) -> dict[str, float]:
    """In percent; where there was nothing to find, COCO's -1 is left out, and so is NaN."""
    found = {key.rpartition('/')[2]: value for key, value in line.items() if '/' in key}
    return {
        name: round(scale * found[key], 2) for key, (name, scale) in SCORES.items() if found.get(key, -1) >= 0
    }


def format_table(runs: Sequence[Run]) -> str:
    """The runs, a line each, without the columns that none of them fills; a dash is what was not logged."""
    rows = [run.row() for run in runs]
    columns = [column for column in rows[0] if any(row[column] != '' for row in rows)]
    return align([columns, *([str(row[column]) or '-' for column in columns] for row in rows)])


def write_table(runs: Sequence[Run], path: Path) -> None:
    """Write the whole table to a CSV file."""
    write_rows([run.row() for run in runs], path)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Draw loss and scores over iterations, a colour a run, and write the points beside it as CSV."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    panels = [what for what in ('loss', *NAMES) if any(run.curve(what)[0] for run in runs)]
    size = (4.5 * len(panels), 3.6)
    figure, axes = pyplot.subplots(1, len(panels), figsize=size, sharex=True, squeeze=False)
    for axis, what in zip(axes[0], panels):
        for number, run in enumerate(runs):
            style = {} if what == 'loss' else dict(marker='o', markersize=4)
            axis.plot(*run.curve(what), label=run.name, color=f'C{number % 10}', linewidth=1.2, **style)
        axis.set_ylabel(what if what == 'loss' else f'{what} (%)')
        axis.set_xlabel('iteration')
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if what != 'loss':
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0][0].set_xlim(left=0)  # of all
    figure.tight_layout(rect=(0, 0.06 * (1 + len(runs) // 4), 1, 1))
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc='lower center', ncols=4, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    points = [
        dict(zip(POINT, (run.name, what, step, value)))
        for run in runs
        for what in panels
        for step, value in zip(*run.curve(what))
    ]
    write_rows(points, path.with_suffix('.csv'))
