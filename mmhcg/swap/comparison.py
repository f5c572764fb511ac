"""A detector before and after its backbone was swapped, and whether the new one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from mmengine.config import Config

from mmhcg.analysis.complexity import count_complexity
from mmhcg.runs.config import build_detector
from mmhcg.runs.errors import UserError
from mmhcg.runs.pretrained import without_pretrained
from mmhcg.swap import measure_config
from mmhcg.swap.rehearsal import build_untrained, predict_once, train_once

STEPS = ('building', 'a training step', 'a prediction')


def compare_detectors(
    old: Config,
    new: Config,
    shape: tuple[int, int] = (800, 1280),
    progress: Callable[[str], None] = lambda text: None,
) -> str:
    """A table of levels, parameters and multiply-adds, and what a training step and a prediction gave.

    Where the old detector fails, too, no later than the new one, both failures stand there instead, and '?'
    in the table for what cannot be computed.

    Args:
        old: The config before.
        new: The config with another backbone.
        shape: Height and width of the image for which multiply-adds are counted.
        progress: Is told what is going on.

    Raises:
        UserError: The new detector fails at a step that the old one gets past.
    """
    progress('building the new detector, for a training step and a prediction ...')
    told, fault = _rehearsed(new)
    lines = told[1:]  # that it is built goes without saying
    if fault:
        progress('it fails; the same with the old detector ...')
        before, fault_before = _rehearsed(old)
        if len(before) > len(told):
            raise UserError(f'the new detector fails in {fault} (the old one gets past this)')
        lines += [f'the new detector fails in {fault}', f'and the old one in {fault_before}']
    progress('measuring both detectors ...')
    return '\n'.join([*_table(old, new, shape), *lines]) + '\n'


def _rehearsed(cfg: Config) -> tuple[list[str], str]:
    """What each step of a detector gave, as far as it comes, and how the next one fails."""
    told = []
    try:
        for line in _steps(cfg):
            told.append(line)
    except Exception as error:  # of any detector
        return told, f'{STEPS[len(told)]}: {type(error).__name__}: {error}'
    return told, ''


def _steps(cfg: Config) -> Iterator[str]:
    model = build_untrained(cfg)
    yield 'it is built'
    losses, missing = train_once(model)
    if missing:
        raise RuntimeError(f'no gradient reaches {", ".join(missing[:3])} of the backbone')
    yield f'a training step: loss {losses["loss"]:.3g}, with a gradient for all of the backbone that trains'
    objects = predict_once(model)
    yield 'a prediction: done' + ('' if objects is None else f', {objects} objects')


def _table(old: Config, new: Config, shape: tuple[int, int]) -> Iterator[str]:
    yield f'{"stride":>13}{"channels before":>17}{"now":>9}'
    for level, swapped in zip(measure_config(old), measure_config(new)):
        yield f'{level.stride:13}{level.channels:17}{swapped.channels:9}'
    for title, unit, before, now in zip(
        ('parameters', 'multiply-adds'), 'MG', _sizes(old, shape), _sizes(new, shape)
    ):
        yield f'{title:13}{before:>15} {unit}{now:>7} {unit}'
    yield f'(image of {shape[0]}x{shape[1]})'


def _sizes(cfg: Config, shape: tuple[int, int]) -> list[str]:
    """Parameters in millions and multiply-adds in billions."""
    sizes = ['?', '?']
    with suppress(Exception):  # of any detector; the steps tell of it
        model = build_detector(without_pretrained(cfg))
        sizes[0] = f'{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}'
        sizes[1] = f'{sum(part.exact for part in count_complexity(model, shape)) / 1e9:.2f}'
    return sizes
