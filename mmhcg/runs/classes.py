"""The contract of categories: the config's classes, those in the annotation file and the heads' outputs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file

from mmhcg.runs.config import detector_of, dicts_of
from mmhcg.runs.errors import UserError

ROWS = 12  # of the two lists side by side
# Heads that count other things than categories: objectness, kinds of stuff, people
OTHER_HEADS = {'rpn_head', 'semantic_head', 'head', 'track_head'}


def classes_of(where: str, dataset: ConfigDict, cls: Any) -> list[str]:
    """The classes of a dataset: those in the config, else those of its type; UserError for a bare string."""
    classes = (dataset.get('metainfo') or {}).get('classes') or cls.METAINFO.get('classes') or ()
    if not isinstance(classes, str):
        return list(classes)
    try:
        return list_from_file(classes)  # as MMEngine takes a string
    except OSError:
        raise UserError(
            f'{where}: metainfo.classes is a string, {classes!r}; MMDetection expects a tuple. '
            f'One class needs a comma: classes=({classes!r},)'
        ) from None


def check_names(where: str, classes: Sequence[str], names: Sequence[str]) -> None:
    """Raises UserError where the classes of a config are not those of the annotation file, in its order.

    MMDetection numbers labels in the order of the file, whatever that of the config, and skips names that the
    file lacks; either gives later classes the labels of others. More categories in the file do no harm, the
    objects in them are skipped.
    """
    absent = [name for name in classes if name not in names]
    if [name for name in names if name in classes] == list(classes):
        return
    fault = f'lacks {len(absent)} of them, e.g. {absent[0]!r}' if absent else 'has them in another order'
    raise UserError(
        f'class names of the config are not those of the annotation file, which {fault}; labels would be '
        f'shifted silently.\n  {where}\n{_side_by_side(classes, names)}\n'
        "Set the dataset's metainfo=dict(classes=(...)) in the file's order, and num_classes of the heads"
    )


def check_heads(cfg: Config, where: str, classes: Sequence[str]) -> None:
    """Raises UserError where a head of the detector has another number of classes than the dataset.

    With fewer, labels are out of range or taken for background; with more, a detection of a class that is not
    there ends the evaluation.
    """
    detector = detector_of(cfg)
    if 'language_model' in detector:  # its heads have as many outputs as a text may have words
        return
    wrong = [
        f'  model{path}.{key}={node[key]}'
        for path, node in dicts_of(detector)
        if any(part.endswith('_head') for part in path.split('.')) and not OTHER_HEADS & set(path.split('.'))
        for key in ('num_classes', 'num_things_classes')
        if node.get(key, len(classes)) != len(classes)
    ]
    if wrong:
        shown = [*classes[:ROWS], '...'] if len(classes) > ROWS else classes
        raise UserError(
            f'{where} has {len(classes)} classes, {", ".join(shown)}, and the detector another number:\n'
            + '\n'.join(wrong)
            + "\nSet num_classes of the heads, or the dataset's metainfo=dict(classes=(...))"
        )


def _side_by_side(classes: Sequence[str], names: Sequence[str]) -> str:
    """Two columns of names, from a little before the first row in which they differ."""
    rows = list(zip_longest(classes, names, fillvalue=''))
    first = next(place for place, (one, other) in enumerate(rows) if one != other)
    start = max(0, min(first - 2, len(rows) - ROWS))
    titles = (f'config ({len(classes)})', f'file ({len(names)})')
    shown = [titles, *rows[start : start + ROWS]]
    width = max(len(one) for one, _ in shown)
    lines = [f'  {one:{width}}  {other}'.rstrip() for one, other in shown]
    if start:
        lines.insert(1, f'  ... {start} more')
    if start + ROWS < len(rows):
        lines.append(f'  ... {len(rows) - start - ROWS} more')
    return '\n'.join(lines)
