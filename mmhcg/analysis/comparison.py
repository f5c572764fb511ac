"""A detector before and after its backbone was swapped, and whether the new one runs."""

from __future__ import annotations

from mmengine.config import Config

from mmhcg.analysis.complexity import count_complexity
from mmhcg.analysis.rehearsal import build_untrained, rehearse, without_pretrained
from mmhcg.runs.config import build_detector
from mmhcg.runs.errors import UserError
from mmhcg.swap import measure_levels


def compare_detectors(old: Config, new: Config, shape: tuple[int, int] = (800, 1280)) -> str:
    """A table of levels, parameters and multiply-adds, after a training step and a prediction of the new one.

    Args:
        old: The config before.
        new: The config with another backbone.
        shape: Height and width of the image for which multiply-adds are counted.

    Raises:
        UserError: The new detector does not build or run, or its backbone gets no gradient somewhere.
    """
    try:
        model = build_untrained(new)
        rehearsal = rehearse(model)
    except Exception as error:  # of any detector
        before = 'but the old one does' if _runs(old) else 'nor does the old one'
        raise UserError(
            f'the new detector does not run, {before}: {type(error).__name__}: {error}'
        ) from error
    if rehearsal.without_gradient:
        raise UserError(f'no gradient reaches {", ".join(rehearsal.without_gradient[:3])} of the backbone')
    models = [build_detector(without_pretrained(cfg)) for cfg in (old, new)]
    before, now = (measure_levels(m.backbone) for m in models)
    lines = [f'{"stride":>13}{"channels before":>17}{"now":>9}']
    lines += [f'{a.stride:13}{a.channels:17}{b.channels:9}' for a, b in zip(before, now)]
    parts = [count_complexity(m, shape) for m in models]
    for field, title, unit, name in (
        ('parameters', 'parameters', 1e6, 'M'),
        ('exact', 'multiply-adds', 1e9, 'G'),
    ):
        sums = [sum(getattr(part, field) for part in counted) / unit for counted in parts]
        lines.append(f'{title:13}{sums[0]:15.2f} {name}{sums[1]:7.2f} {name}')
    found = '' if rehearsal.detections is None else f', {rehearsal.detections} objects'
    lines.append(f'(image of {shape[0]}x{shape[1]})')
    lines.append(
        f'a training step: loss {rehearsal.losses["loss"]:.3g}, '
        'with a gradient for all of the backbone that trains'
    )
    lines.append(f'a prediction: done{found}')
    return '\n'.join(lines) + '\n'


def _runs(cfg: Config) -> bool:
    try:
        rehearse(build_untrained(cfg))
    except Exception:  # of any detector
        return False
    return True
