"""The authors' checkpoints as ours and ours as theirs: each entry by its name, none left to chance."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmhcg.network import get_variant
from mmhcg.weights.files import WeightsError, check_values, read_entries
from mmhcg.weights.names import ARCHS, COUNTER, table, to_ours, to_theirs

KINDS = ('auto', 'classification', 'detection')
CLASSIFIER = {'classifier.weight': 'head.fc.weight', 'classifier.bias': 'head.fc.bias'}  # mmpretrain's names
COCO_CLASSES = 80
MOST_CLASSES = 100_000  # ImageNet has 21,843 in all; far more are no classes but a claim on memory
SHOWN = 3  # names or faults of a kind that a message lists


class Entry(NamedTuple):
    """An entry that a file should have, and what becomes of it.

    Attributes:
        source: Its name in the file.
        target: Its name afterwards.
        like: A tensor of its shape and type in the file, on no device.
        convert: Its tensor in the file -> that afterwards.
    """

    source: str
    target: str
    like: Tensor
    convert: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Report:
    """What a conversion found.

    Attributes:
        kind: 'classification' (a backbone) or 'detection' (a whole Mask R-CNN).
        arch: The variant, 'b' or 'c'.
        loaded: Entries of the file that the network takes.
        expected: Entries that the network has; those not in the file are counters `num_batches_tracked`.
        left_over: Names of the file's entries that were not needed, e.g. the classifier's.
        sha256: Of the file that `tools/convert_checkpoint.py` wrote; None before.
    """

    kind: str
    arch: str
    loaded: int
    expected: int
    left_over: tuple[str, ...]
    sha256: str | None = None

    def __str__(self) -> str:
        absent = self.expected - self.loaded
        counted = 'counter' if absent == 1 else 'counters'
        counters = f'{absent} {counted} ({COUNTER[1:]}) not in the file and set to 0, ' if absent else ''
        left_over = ', '.join(_first(self.left_over)) or 'nothing'
        digest = f'; SHA-256 {self.sha256}' if self.sha256 else ''
        return (
            f'HCGNet-{self.arch.upper()}, {self.kind}: {self.loaded} of {self.expected} entries loaded, '
            f'{counters}left over: {left_over}{digest}'
        )


def convert_checkpoint(
    src: str | Path, kind: str = 'auto', with_classifier: bool = False
) -> tuple[dict[str, Tensor], Report]:
    """Read an authors' file as a state dict of ours.

    Classification files become that of `mmhcg.network.Trunk` and of the backbone `HCGNet`, the detection file
    that of MMDetection 3's `MaskRCNN` around it: background class last instead of first, no box and no mask
    of the background, RoI heads below `roi_head.`. Counters `num_batches_tracked`, which older files lack,
    are then 0. Double precision stays so.

    Args:
        src: In PyTorch's zip or older format; with `net`, `state_dict` or no container; with or without
            `module.` before names.
        kind: 'classification', 'detection', or 'auto' to go by the names in the file.
        with_classifier: Make the state dict of mmpretrain's `ImageClassifier`, that of `configs/pretrain`,
            from a classification file, instead of the backbone's.

    Raises:
        WeightsError: An entry is missing, unknown, of a wrong shape or type, or not finite; or the names are
            ours already, or those of the other kind.
        mmhcg.stack.checkpoints.CheckpointError: The file cannot be read, or asks for code to be run.
    """
    entries = read_entries(src)
    kind = _kind_of(src, entries, 'authors', kind)
    classes = max(_rows(src, entries, 'bbox_head.fc_cls.bias', COCO_CLASSES + 1) - 1, 1)
    unused = CLASSIFIER if kind == 'classification' else ()
    left_over = tuple(name for name in entries if name in unused)
    taken = {name: tensor for name, tensor in entries.items() if name not in unused}

    def entry(ours: str, theirs: str, like: Tensor) -> Entry:
        return Entry(theirs, ours, to_theirs(ours, like), partial(to_ours, ours))

    arch, state = _match(src, kind, taken, _wanted(kind, classes, entry))
    if left_over:
        _check_classifier(src, entries, get_variant(arch).stage_channels[-1])
    check_values(src, entries)
    if with_classifier:
        if len(left_over) < len(CLASSIFIER):
            raise WeightsError(f'{src}: a {kind} file without a classifier, which --with-classifier wants')
        state = {f'backbone.{name}': tensor for name, tensor in state.items()}
        state.update({ours: entries[theirs] for theirs, ours in CLASSIFIER.items()})
        return state, Report(kind, arch, len(entries), len(state), ())
    return state, Report(kind, arch, len(taken), len(state), left_over)


def restore_checkpoint(src: str | Path, kind: str = 'auto') -> tuple[dict[str, Tensor], Report]:
    """Read weights of ours as a state dict in the authors' names, for publication beside theirs.

    It has the order of the authors' modules, which `.pth` keeps and `.safetensors` does not. What MMDetection
    1 stored for the background's box and mask, and never used, becomes zeros.

    Args:
        src: A backbone's weights, or a checkpoint of the Mask R-CNN or the classifier around it.
        kind: Of the file to make: 'classification', which takes the backbone out of what is around it and has
            no classifier, 'detection', or 'auto' to go by what is there.

    Raises: as `convert_checkpoint`.
    """
    entries = read_entries(src)
    kind = _kind_of(src, entries, 'ours', kind)
    taken, left_over = entries, tuple[str, ...]()
    if kind == 'classification' and _any(entries, 'backbone.'):
        left_over = tuple(name for name in entries if not name.startswith('backbone.'))
        taken = {name.removeprefix('backbone.'): entries[name] for name in entries if name not in left_over}
    classes = max(_rows(src, entries, 'roi_head.mask_head.conv_logits.bias', COCO_CLASSES), 1)

    def entry(ours: str, theirs: str, like: Tensor) -> Entry:
        return Entry(ours, theirs, like, partial(to_theirs, ours))

    arch, state = _match(src, kind, taken, _wanted(kind, classes, entry))
    check_values(src, taken)
    return state, Report(kind, arch, len(taken), len(state), left_over)


def _first(names: Collection[str]) -> list[str]:
    """The first few, and how many more there are."""
    more = [f'and {len(names) - SHOWN} more'] if len(names) > SHOWN else []
    return [*list(names)[:SHOWN], *more]


def _any(entries: Collection[str], *starts: str) -> bool:
    return any(name.startswith(starts) for name in entries)


def _layout_of(entries: Collection[str]) -> tuple[str | None, str]:
    """Whose names these are, 'authors' or 'ours', if it can be told, and the kind of file that has them."""
    if _any(entries, 'features.'):
        return 'authors', 'classification'
    if _any(entries, 'backbone.stem0.'):
        return 'authors', 'detection'
    if _any(entries, 'stem.'):
        return 'ours', 'classification'
    if _any(entries, 'backbone.stem.'):  # mmpretrain's classifier has no neck with entries
        return 'ours', 'detection' if _any(entries, 'neck.', 'roi_head.') else 'classification'
    return None, 'detection' if _any(entries, 'backbone.') else 'classification'


def _kind_of(src: str | Path, entries: Collection[str], wanted: str, kind: str) -> str:
    """The kind to go by.

    Args:
        wanted: Whose names it should have: 'authors' or 'ours'.
        kind: That was asked for.

    Raises:
        WeightsError: It has the other's names, or is of a kind that does not have what was asked for.
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be one of {", ".join(KINDS)}, not {kind!r}')
    whose, found = _layout_of(entries)
    if whose not in (wanted, None):
        names = 'our names' if wanted == 'authors' else "the authors' names"
        raise WeightsError(f'{src}: these are already {names}; it needs no conversion')
    if kind == 'auto':
        return found
    if whose == 'authors' and kind != found:
        raise WeightsError(f'{src}: by its names this is a {found} file, not a {kind} file: --kind {found}')
    if whose == 'ours' and kind == 'detection' and found != kind:
        raise WeightsError(f'{src}: holds a backbone alone, so the heads of a detector are missing')
    return kind


def _wanted(kind: str, classes: int, entry: Callable[[str, str, Tensor], Entry]) -> dict[str, list[Entry]]:
    """By variant: `entry` of each of our names, the authors' name for it and a tensor of our shape."""
    return {
        arch: [entry(ours, theirs, like) for ours, (theirs, like) in table(kind, arch, classes).items()]
        for arch in ARCHS
    }


def _check_classifier(src: str | Path, entries: Mapping[str, Tensor], channels: int) -> None:
    """It may be left over, but one that does not belong to the trunk casts doubt on the whole file."""
    weight, bias = (entries.get(name, torch.empty(0)) for name in CLASSIFIER)
    fits = weight.is_floating_point() and bias.is_floating_point()
    if not fits or weight.shape != (_rows(src, entries, 'classifier.bias', 0), channels):
        found = {
            name: (*entries[name].shape, str(entries[name].dtype)) for name in CLASSIFIER if name in entries
        }
        raise WeightsError(f'{src}: no classifier of {channels} channels, with weight and bias: {found}')


def _rows(src: str | Path, entries: Mapping[str, Tensor], name: str, default: int) -> int:
    """Rows of an entry by which the number of classes is known; where it is missing the match will tell."""
    rows = entries[name].numel() if name in entries else default
    if rows > MOST_CLASSES:
        raise WeightsError(f'{src}: entry {name} is for {rows} classes, and {MOST_CLASSES} are the most')
    return rows


def _match(
    src: str | Path, kind: str, entries: Mapping[str, Tensor], wanted: Mapping[str, Sequence[Entry]]
) -> tuple[str, dict[str, Tensor]]:
    """The variant whose entries these are, and what becomes of them by their new names.

    Raises:
        WeightsError: They are no variant's; it lists what keeps them from being the nearest.
    """
    faults = {arch: _faults(entries, wanted[arch]) for arch in wanted}
    arch = min(faults, key=lambda arch: sum(map(len, faults[arch])))
    if not any(faults[arch]):
        return arch, {
            target: convert(entries[source] if source in entries else torch.zeros_like(like, device='cpu'))
            for source, target, like, convert in wanted[arch]
        }
    if not entries.keys() & {entry.source for entry in wanted[arch]}:
        names = ', '.join(_first(entries))
        raise WeightsError(f'{src}: none of its {len(entries)} names is that of a {kind} file: {names}')
    missing, others = faults[arch]
    listed = ''.join(f'\n  {fault}' for fault in [*_first(missing), *_first(others)])
    raise WeightsError(f'{src} fits no variant of HCGNet. The nearest is {arch!r}:{listed}')


def _faults(entries: Mapping[str, Tensor], wanted: Sequence[Entry]) -> tuple[list[str], list[str]]:
    """What is missing, and what is there but should not be, or not like this."""
    missing = [
        f'{name} is missing' for name, *_ in wanted if name not in entries and not name.endswith(COUNTER)
    ]
    others = []
    for name, _, like, _ in wanted:
        if name in entries and entries[name].shape != like.shape:
            others.append(f'{name} has shape {tuple(entries[name].shape)} instead of {tuple(like.shape)}')
        elif name in entries and entries[name].is_floating_point() != like.is_floating_point():
            others.append(f'{name} is of type {entries[name].dtype} instead of {like.dtype}')
    unknown = entries.keys() - {entry.source for entry in wanted}
    return missing, others + [f'{name} is unknown' for name in entries if name in unknown]
