"""What reads a backbone's maps: necks and heads, and the channel numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from mmhcg.runs.config import alone, class_name, dicts_of
from mmhcg.swap.old import SwapError


def refuse_dependence(detector: ConfigDict) -> None:
    """Raises SwapError where something else than channel numbers depends on the backbone."""
    for path, node in dicts_of(detector, 'model'):
        own = [key for key in node if key.endswith('_backbone')] if path.startswith('model.neck') else []
        if own:
            raise SwapError(
                f'{path} holds a backbone of its own ({own[0]}), which is fed with maps of this one'
            )
        if path.endswith('.shared_head') and 'in_channels' not in node:
            kind = class_name(node)
            raise SwapError(f'{path} ({kind}) is the last stage of the old backbone and reads no other')


def replace_channels(detector: ConfigDict, old: Sequence[int], new: Sequence[int]) -> None:
    """The numbers in what reads the backbone.

    Raises:
        SwapError: Nothing downstream has the old backbone's channel numbers.
    """
    neck = detector.get('neck')
    first = neck[0] if isinstance(neck, (list, tuple)) else neck
    heads = [
        node
        for path, node in dicts_of(detector, 'model')
        if path.split('.')[1:2] != ['neck'] and 'teacher' not in path
    ]
    # A number beside a neck reads the neck, and one beside several levels nobody knows which.
    found = [_replace(head, old, new, single=not first and len(old) == 1) for head in heads]
    if first:
        found.append(_replace(first, old, new, single=True))
    if not any(found):
        raise SwapError(_nobody_reads(first, old))
    if first:
        _pass_on(first, heads, old, new)
        try:
            MODELS.build(alone(first))
        except Exception as error:  # of any neck's constructor
            reason = f'{type(error).__name__}: {error}'
            raise SwapError(
                f'model.neck cannot be built for maps of {list(new)} channels: {reason}'
            ) from error


def _replace(reader: ConfigDict, old: Sequence[int], new: Sequence[int], single: bool) -> bool:
    """Whether `reader` has any of the numbers; `single`: it may read one level of many."""
    found = False
    # RoI extractors put out what they take in.
    for key in ('in_channels', 'out_channels') if 'roi_layer' in reader else ('in_channels',):
        value = _replaced(reader.get(key), old, new, single)
        if value is not None:
            reader[key] = value
            found = True
    return found


def _replaced(value: Any, old: Sequence[int], new: Sequence[int], single: bool) -> Any:
    """`value` with the new channel numbers if it has the old ones, else None."""
    if isinstance(value, int) and list(old).count(value) == 1 and single:
        return new[list(old).index(value)]
    if isinstance(value, (list, tuple)):
        for step in (1, -1):  # YOLO's necks read from the coarsest level
            if list(value) == list(old)[::step]:
                return type(value)(list(new)[::step])
    return None


def _nobody_reads(neck: ConfigDict | None, old: Sequence[int]) -> str:
    if neck and 'in_channels' not in neck:
        return f'this is no detector: its neck ({class_name(neck)}) has no `in_channels`, as of a classifier'
    return f'nothing that reads the backbone has `in_channels` of {list(old)}, its channels'


def _pass_on(neck: ConfigDict, heads: Sequence[ConfigDict], old: Sequence[int], new: Sequence[int]) -> None:
    """SSD's neck puts out the maps that it takes in, and adds coarser ones: its heads read both."""
    out = neck.get('out_channels')
    if not isinstance(out, (list, tuple)) or list(out[: len(old)]) != list(old):
        return
    neck.out_channels = type(out)([*new, *out[len(old) :]])
    for head in heads:
        if head.get('in_channels') == out:
            head.in_channels = neck.out_channels
