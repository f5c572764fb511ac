"""The kinds of faults that COCO annotations and images have, and what each does to a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import Flag, auto
from itertools import zip_longest
from typing import NamedTuple


class Use(Flag):
    """What a run does with an annotation file."""

    IMAGES = auto()  # a dataset lists its images
    BOXES = auto()  # a dataset reads its objects, to learn them or to score against them
    MASKS = auto()  # and their masks
    SCORE = auto()  # pycocotools scores boxes against it
    SCORE_MASKS = auto()  # and masks
    BOXES_ONLY = IMAGES | BOXES | SCORE
    ALL = BOXES_ONLY | MASKS | SCORE_MASKS


OBJECTS = Use.BOXES | Use.MASKS | Use.SCORE | Use.SCORE_MASKS
ANY_MASKS = Use.MASKS | Use.SCORE_MASKS
SCORED = Use.SCORE | Use.SCORE_MASKS
HARMLESS = Use(0)

EXAMPLES = 10  # kept and shown of many faults

# Kind of fault: the uses in which it ends a run or makes it learn or score what is not so, and how. Found by
# giving each to MMDetection 3.3.0 and pycocotools 2.0; in other uses they skip the item or it does no harm.
KINDS: dict[str, tuple[Use, str]] = {
    'malformed JSON': (Use.ALL, 'nothing can be read'),
    'no images': (Use.ALL, 'crash at the start'),
    'no categories': (Use.ALL, 'crash at the start'),
    'no annotations': (OBJECTS, 'nothing to learn, and an AP of -1'),
    'no objects': (SCORED, 'none of the classes that are asked for: an AP of -1'),  # in training, background
    'malformed item': (Use.ALL, 'crash at the start'),
    'malformed id': (Use.ALL, 'crash, or never matched'),
    'duplicate image id': (Use.ALL, 'the last of them gets the objects of all'),
    'duplicate category id': (Use.ALL, 'labels of other classes are shifted'),
    'duplicate category name': (Use.ALL, 'labels of other classes are shifted'),
    'duplicate annotation id': (OBJECTS, 'crash at the start'),
    'annotation id 0': (HARMLESS, 'pycocotools counts it as never found'),
    'malformed file name': (Use.IMAGES, 'crash at the start'),
    'malformed image size': (Use.IMAGES | Use.SCORE_MASKS, 'crash at the start, or no mask fits'),
    'file outside the folder': (HARMLESS, 'read from there, wherever the data is moved to'),
    'unknown image': (HARMLESS, 'skipped'),
    'unknown category': (HARMLESS, 'skipped'),
    'no bbox': (OBJECTS, 'crash at the start'),
    'NaN in bbox': (Use.SCORE, 'skipped in training; in scoring, any detection matches it'),
    'infinity in bbox': (Use.BOXES | Use.SCORE, 'learnt as a box up to the edge of the image, never found'),
    'bbox below a pixel': (HARMLESS, 'skipped in training'),
    'bbox without area': (HARMLESS, 'skipped in training, never found in scoring'),
    'bbox outside': (HARMLESS, 'skipped in training, never found in scoring'),
    'bbox beyond the edge': (HARMLESS, 'cut at the edge in training and not in scoring'),
    'no area': (OBJECTS, 'crash at the start'),
    'NaN in area': (HARMLESS, 'of no size in scoring'),
    'area not positive': (HARMLESS, 'skipped in training, of no size in scoring'),
    'no iscrowd': (SCORED, 'crash when scored'),
    'no segmentation': (ANY_MASKS, 'crash when the image is reached'),
    'malformed segmentation': (ANY_MASKS, 'crash when the image is reached'),
    'NaN or infinity in polygon': (ANY_MASKS, 'kills the process without a message'),
    'polygon far outside': (ANY_MASKS, 'fills the memory until the process is killed'),
    'too few points in the first polygon': (Use.SCORE_MASKS, 'skipped in training, crash when scored'),
    'too few points': (HARMLESS, 'skipped in training'),
    'odd number of coordinates': (HARMLESS, 'skipped in training, but not in scoring'),
    'RLE without counts or size': (Use.SCORE_MASKS, 'skipped in training, crash when scored'),
    'RLE of another size': (ANY_MASKS, 'crash, or a garbled mask'),
    'broken RLE': (ANY_MASKS, 'crash or a mask of anything; scoring never ends'),
    'missing image': (Use.ALL, 'crash when the image is reached'),
    'empty image': (Use.ALL, 'crash when the image is reached'),
    'no image': (Use.ALL, 'crash when the image is reached'),
    'damaged image': (Use.ALL, 'crash, or what is missing is read as grey'),
    'image of another size': (Use.ALL, 'boxes and masks lie elsewhere'),
    'too large to check': (HARMLESS, 'not decoded here'),
}


class Fault(NamedTuple):
    """A fault of a kind in KINDS: whether it stops the run, in which file and item, and what is there."""

    kind: str
    stops: bool
    file: str
    item: str
    what: str

    def __str__(self) -> str:
        where = ': '.join(filter(None, (self.file, self.item)))
        what = f', {self.what}' if self.what not in ('', self.kind) else ''
        text = f'{where}: {self.kind}{what} ({KINDS[self.kind][1]})'
        # File names may hold line breaks, control sequences and halves of characters.
        return ''.join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


Found = Iterator[tuple[str, str, str]]  # kind, item, what: faults of a file that is known


def judge(path: str, use: Use, found: Found) -> Iterator[Fault]:
    """What was found in the file `path`, as faults of the weight that they have in this use."""
    return (Fault(kind, bool(KINDS[kind][0] & use), path, item, what) for kind, item, what in found)


class Tally:
    """How many faults there are of each weight and kind, and the first few of each."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[bool, str]] = Counter()
        self.examples: dict[tuple[bool, str], list[Fault]] = {}

    def add(self, fault: Fault) -> None:
        """Count one more."""
        key = fault.stops, fault.kind
        self.counts[key] += 1
        if self.counts[key] <= EXAMPLES:
            self.examples.setdefault(key, []).append(fault)

    def summary(self, stops: bool) -> str:
        """The numbers of those that stop a run, or of the others, such as `3 (1 x no area, 2 x no bbox)`."""
        counts = {kind: number for (stopping, kind), number in self.counts.items() if stopping is stops}
        kinds = ', '.join(f'{number} x {kind}' for kind, number in counts.items())
        return f'{sum(counts.values())} ({kinds})' if counts else '0'

    def first(self, stops: bool) -> list[Fault]:
        """Some of those that stop a run, or of the others: one of each kind, then more."""
        kinds = [examples for (stopping, _), examples in self.examples.items() if stopping is stops]
        ranked = [fault for rank in zip_longest(*kinds) for fault in rank if fault is not None]
        return ranked[:EXAMPLES]
