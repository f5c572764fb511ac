"""HCGNet at work as pictures: where its gates look, what they keep, what its stages see.

Every picture `NAME.png` has its numbers beside it, in `NAME.csv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch import Tensor

from mmhcg.analysis.looking import Look, ModuleView, enlarge, principal_colours, spread
from mmhcg.analysis.tables import write_rows

COLUMNS = 7  # modules in a row, at most
PANEL = 1.9  # inches
DPI = 150
RANGE = 16  # colours end where a place counts 16 times as much, or as little, as the average one
BINS = 20


class Photo:
    """A photograph, and where the positions of maps lie in it.

    Args:
        pixels: (H, W, 3), RGB in 0..255.
        input_size: The (h, w) to which it was resized before the network saw it.
    """

    def __init__(self, pixels: np.ndarray, input_size: tuple[int, int]) -> None:
        self.size = pixels.shape[:2]
        self.input_size = input_size
        # As large as it is drawn: full size would only make drawing slow.
        shrink = min(1, PANEL * DPI / self.size[1])
        height, width = (max(1, round(side * shrink)) for side in self.size)
        self.pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the network's input as one of the photograph."""
        height, width = (large / small for large, small in zip(self.size, self.input_size))
        return round(x * width, 1), round(y * height, 1)

    def over(self, feat: Tensor, stride: int) -> np.ndarray:
        """A map (K, H, W) as large as the photograph is drawn, (h, w, K)."""
        feat = enlarge(feat, stride, self.input_size, self.pixels.shape[:2])
        return feat.permute(1, 2, 0).numpy()

    def sheet(self, rows: int, columns: int) -> tuple[Any, np.ndarray]:
        """A figure and its axes (rows, columns), as high as the photograph wants them."""
        from matplotlib import pyplot

        height = PANEL * self.size[0] / self.size[1] + 0.2
        size = (PANEL * columns + 0.8, height * rows + 0.5)
        figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout='constrained')
        for axis in axes.flat:
            axis.set_axis_off()
        return figure, axes


def save_attention(modules: Sequence[ModuleView], photo: Photo, path: Path) -> None:
    """Where the update gates of one stage look."""
    from matplotlib.colors import LogNorm

    bands = -(-len(modules) // COLUMNS)
    columns = -(-len(modules) // bands)
    figure, axes = photo.sheet(2 * bands, 1 + columns)
    _show(axes[0, 0], photo.pixels, 'photograph')
    rows = []
    for number, module in enumerate(modules):
        band, column = divmod(number, columns)
        for row, (kernel, attention) in enumerate(((3, module.attention3), (5, module.attention5))):
            rows.append(_attention_row(module, kernel, attention, photo))
            title = f'{module.name}, {kernel}x{kernel}: {spread(attention):.0%}'
            axis = axes[2 * band + row, 1 + column]
            _show(axis, photo.pixels.mean(2), title, cmap='gray', vmin=0, vmax=255)
            weights = photo.over(attention[None] * attention.numel(), module.stride)
            options = dict(cmap='RdBu_r', norm=LogNorm(1 / RANGE, RANGE), alpha=0.6)
            drawn = _show(axis, weights, title, **options)
    bar = figure.colorbar(drawn, ax=axes[:2], extend='both', shrink=0.9, aspect=25, pad=0.01)
    bar.set_ticks([1 / 16, 1 / 4, 1, 4, 16], labels=['1/16', '1/4', 'average', 'x 4', 'x 16'], fontsize=7)
    bar.minorticks_off()
    bar.set_label('how much a place counts', fontsize=7)
    figure.suptitle(
        f'Stage {modules[0].stage}: where the update gates look. A module adds to its map what it gathers '
        'over all places,\nred ones counting more than the average, blue ones less '
        '(in %: how much of the image it looks at).',
        fontsize=8,
    )
    _save(figure, rows, path)


def _attention_row(module: ModuleView, kernel: int, attention: Tensor, photo: Photo) -> dict[str, Any]:
    y, x = divmod(int(attention.argmax()), attention.shape[1])
    peak_x, peak_y = photo.place(x * module.stride, y * module.stride)
    return dict(
        stage=module.stage,
        module=module.name,
        kernel=kernel,
        height=attention.shape[0],
        width=attention.shape[1],
        share_of_image=round(spread(attention), 4),
        peak_x=peak_x,
        peak_y=peak_y,
        peak_times_average=round(float(attention.max() * attention.numel()), 3),
    )


def save_forget_gates(modules: Sequence[ModuleView], path: Path) -> None:
    """How much of each channel the forget gates keep: a histogram a module, a row a stage."""
    from matplotlib import pyplot

    stages = sorted({module.stage for module in modules})
    columns = max(sum(module.stage == stage for module in modules) for stage in stages)
    size = (1.5 * columns + 0.6, 1.3 * len(stages) + 0.6)
    figure, axes = pyplot.subplots(
        len(stages), columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout='constrained'
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for row, stage in enumerate(stages):
        for axis, module in zip(axes[row], (module for module in modules if module.stage == stage)):
            axis.set_axis_on()
            weights = np.full(len(module.kept), 1 / len(module.kept))
            axis.hist(module.kept.numpy(), BINS, range=(0, 1), weights=weights, color=f'C{row % 10}')
            axis.axvline(float(module.kept.median()), color='black', linewidth=1, linestyle=':')
            axis.set_title(f'stage {stage}, {module.name}', fontsize=7)
            axis.set_xticks([0, 0.5, 1], labels=['forget', 'half', 'keep'], fontsize=7)
            axis.tick_params(labelsize=7, labelbottom=True)
            axis.spines[['top', 'right']].set_visible(False)
        axes[row, 0].set_ylabel('share of channels', fontsize=7)
    figure.suptitle('What the forget gates keep of each channel (dotted: of the middle one)', fontsize=8)
    rows = [
        dict(stage=module.stage, module=module.name, channel=channel, kept=round(kept, 5))
        for module in modules
        for channel, kept in enumerate(module.kept.tolist())
    ]
    _save(figure, rows, path)


def save_features(look: Look, photo: Photo, path: Path) -> None:
    """What the stages put out: the mean of all channels, and their three principal components as colours."""
    figure, axes = photo.sheet(2, 1 + len(look.stages))
    _show(axes[0, 0], photo.pixels, 'photograph')
    rows = []
    for number, (feat, stride) in enumerate(zip(look.stages, look.strides), 1):
        channels, height, width = feat.shape
        mean, (colours, shares) = feat.mean(0, keepdim=True), principal_colours(feat)
        mean = photo.over(mean / mean.max().clamp(min=1e-12), stride)
        title = f'stage {number}: {channels} channels, {height}x{width}'
        drawn = _show(axes[0, number], mean, title, cmap='viridis', vmin=0, vmax=1)
        _show(axes[1, number], photo.over(colours, stride), f'three main patterns ({shares.sum():.0%})')
        row = dict(stage=number, channels=channels, height=height, width=width)
        row.update(
            mean=round(float(feat.mean()), 5), share_of_zeros=round(float((feat == 0).float().mean()), 4)
        )
        rows.append({**row, **{f'component{i}': round(float(share), 4) for i, share in enumerate(shares, 1)}})
    bar = figure.colorbar(drawn, ax=axes, shrink=0.9, aspect=25, pad=0.01)
    bar.set_ticks([0, 1], labels=['0', "stage's\nmost"], fontsize=7)
    bar.set_label('mean of all channels', fontsize=7)
    figure.suptitle(
        'What the stages see. Top: the mean of all channels. Bottom: places of one colour look alike to the '
        'network\n(three principal components; in brackets their share of the variance).',
        fontsize=8,
    )
    _save(figure, rows, path)


def _show(axis: Any, pixels: np.ndarray, title: str, **options: Any) -> Any:
    axis.set_title(title, fontsize=7)
    return axis.imshow(pixels, **options)


def _save(figure: Any, rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    write_rows(rows, path.with_suffix('.csv'))
