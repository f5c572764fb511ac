"""What is wrong in a COCO annotation file, item by item."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Iterator
from reprlib import repr as short
from typing import Any, NamedTuple

import numpy as np

from mmhcg.data.faults import OBJECTS, SCORED, Fault, Found, Use, judge
from mmhcg.data.json_lists import json_entries
from mmhcg.data.run_lengths import decode_counts

EDGE = 1.0  # pixels by which a box may exceed its image: annotators round
# What MMDetection passes over in training, masks included
PASSED_OVER = {'bbox without area', 'bbox outside', 'bbox below a pixel', 'area not positive'}
FAR = 10  # sides of the image: pycocotools walks along the outline of a polygon, five steps a pixel


class Image(NamedTuple):
    """What the file says about an image, its size in pixels."""

    name: str
    width: float
    height: float

    def __str__(self) -> str:
        return f'{self.width} x {self.height}' if self.width < math.inf else 'an image of unknown size'


class AnnotationFile:
    """A COCO annotation file, read in small pieces: memory holds its images, and no annotations.

    `images` (Image by id) and `categories` (name by id, in the file's order) are complete once `faults` has
    been gone through, and so are `annotations`, their number, and `with_objects`, ids of the images that they
    are of.

    Args:
        classes: Names of the categories that matter; none: all do.
    """

    def __init__(self, path: str | os.PathLike, use: Use = Use.ALL, classes: Collection[str] = ()) -> None:
        self.path, self.use, self.classes = os.fspath(path), use, classes
        self.images: dict[Any, Image] = {}
        self.categories: dict[Any, str] = {}
        self.annotations = 0
        self.with_objects: set[Any] = set()

    def faults(self) -> Iterator[Fault]:
        """All faults that matter in this use; OSError where the file cannot be opened."""
        return judge(self.path, self.use, self._found())

    def _found(self) -> Found:
        checks: dict[str, Callable[..., Found]] = {'images': self._image, 'categories': self._category}
        there = set()
        try:
            for key, value in json_entries(self.path):
                there.add(key)
                if key in checks and isinstance(value, Iterator):
                    yield from _each(key, value, checks[key])
        except (OSError, ValueError) as error:
            yield 'malformed JSON', '', str(error)
            return
        for key, kept in (('images', self.images), ('categories', self.categories)):
            if not kept:
                yield f'no {key}', '', ''
        if self.use & OBJECTS:
            yield from self._found_annotations()
            has_classes = any(name in self.classes for name in self.categories.values())
            if not self.annotations or (self.images and has_classes and not self.with_objects):
                yield 'no objects' if 'annotations' in there else 'no annotations', '', ''

    def _found_annotations(self) -> Found:
        """A second reading, because annotations may come before the images and categories that they name."""
        ids: set[int] = set()
        for key, value in json_entries(self.path):
            if key == 'annotations' and isinstance(value, Iterator):
                yield from _each(key, value, lambda annotation, item: self._annotation(annotation, item, ids))

    def _image(self, image: dict, item: str) -> Found:
        entries: list[Any] = [image.get(key) for key in ('id', 'file_name', 'width', 'height')]
        number, name, width, height = entries
        if not _is_id(number):
            yield 'malformed id', item, _entry(image, 'id')
            return
        if number in self.images:
            yield 'duplicate image id', item, f'also of {short(self.images[number].name)}'
        if not isinstance(name, str) or not name:
            yield 'malformed file name', item, _entry(image, 'file_name')
            name = ''
        elif os.path.isabs(name) or '..' in re.split(r'[/\\]', name):
            yield 'file outside the folder', item, short(name)
        if not (_is_finite([width, height]) and width >= 1 and height >= 1):
            yield 'malformed image size', item, f'{_entry(image, "width")}, {_entry(image, "height")}'
            width = height = math.inf  # its objects are judged all the same
        self.images[number] = Image(name, width, height)

    def _category(self, category: dict, item: str) -> Found:
        number, name = category.get('id'), category.get('name')
        if not _is_id(number):
            yield 'malformed id', item, _entry(category, 'id')
        elif not isinstance(name, str):
            yield 'malformed item', item, _entry(category, 'name')
        elif number in self.categories:
            yield 'duplicate category id', item, f'of {self.categories[number]!r} and {name!r}'
        else:
            if name in self.categories.values():
                yield 'duplicate category name', item, repr(name)
            self.categories[number] = name

    def _annotation(self, annotation: dict, item: str, ids: set[int]) -> Found:
        self.annotations += 1
        ids_of: list[Any] = [annotation.get(key) for key in ('id', 'image_id', 'category_id')]
        number, image_id, category = ids_of
        if not (_is_whole(number) and _is_id(image_id) and _is_id(category)):
            entries = [_entry(annotation, key) for key in ('id', 'image_id', 'category_id')]
            yield 'malformed id', item, ', '.join(entries)
            return
        if number in ids:
            yield 'duplicate annotation id', item, ''
        ids.add(number)
        if number == 0 and self.use & SCORED:
            yield 'annotation id 0', item, ''
        if self.categories and category not in self.categories:
            yield 'unknown category', item, _entry(annotation, 'category_id')
        if image_id not in self.images:
            if self.images:
                yield 'unknown image', item, _entry(annotation, 'image_id')
            return
        item, image = f'{item} of image {short(image_id)}', self.images[image_id]
        found = [*_check_box(annotation, item, image), *_check_numbers(annotation, item)]
        if self.classes and self.categories.get(category) not in self.classes:
            yield from (fault for fault in found if fault[0] in ('no bbox', 'no area'))  # read all the same
            return
        self.with_objects.add(image_id)
        yield from found
        passed_over = annotation.get('ignore') or any(kind in PASSED_OVER for kind, *_ in found)
        if self.use & Use.SCORE_MASKS or (self.use & Use.MASKS and not passed_over):
            yield from _check_mask(annotation, item, image)


def _each(key: str, items: Iterator, check: Callable[[dict, str], Found]) -> Found:
    """Go through a list of the file; an item is named by its id, or by its place where it has none."""
    one = {'images': 'image', 'categories': 'category', 'annotations': 'annotation'}[key]
    for place, item in enumerate(items):
        number = item.get('id') if isinstance(item, dict) else None
        name = f'{key}[{place}]' if number is None else f'{one} {short(number)}'
        if isinstance(item, dict):
            yield from check(item, name)
        else:
            yield 'malformed item', name, short(item)


def _check_box(annotation: dict, item: str, image: Image) -> Found:
    box = annotation.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not _are_numbers(box):
        yield 'no bbox', item, _entry(annotation, 'bbox')
        return
    x, y, width, height = box
    if not _is_finite(box):
        kind = 'NaN in bbox' if any(value != value for value in box) else 'infinity in bbox'
        yield kind, item, short(box)
    elif width <= 0 or height <= 0:
        yield 'bbox without area', item, short(box)
    elif x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        yield 'bbox outside', item, f'{box} in {image}'
    elif width < 1 or height < 1:
        yield 'bbox below a pixel', item, short(box)
    elif min(x, y) < -EDGE or x + width > image.width + EDGE or y + height > image.height + EDGE:
        yield 'bbox beyond the edge', item, f'{box} in {image}'


def _check_numbers(annotation: dict, item: str) -> Found:
    area: Any = annotation.get('area')
    if not _are_numbers([area]):
        yield 'no area', item, _entry(annotation, 'area')
    elif area != area:
        yield 'NaN in area', item, _entry(annotation, 'area')
    elif area <= 0:
        yield 'area not positive', item, _entry(annotation, 'area')
    if not _are_numbers([annotation.get('iscrowd')]):
        yield 'no iscrowd', item, _entry(annotation, 'iscrowd')


def _check_mask(annotation: dict, item: str, image: Image) -> Found:
    mask = annotation.get('segmentation')
    if not mask:
        yield 'no segmentation', item, _entry(annotation, 'segmentation')
    elif isinstance(mask, dict):
        yield from _check_run_lengths(mask, item, image)
    elif not isinstance(mask, list) or any(not isinstance(p, list) or not _are_numbers(p) for p in mask):
        yield 'malformed segmentation', item, _entry(annotation, 'segmentation')
    else:
        far = FAR * max(image.width, image.height)
        for place, polygon in enumerate(mask):
            if not _is_finite(polygon):
                yield 'NaN or infinity in polygon', item, short(polygon)
            elif polygon and max(max(polygon), -min(polygon)) > far:
                yield 'polygon far outside', item, f'up to {max(polygon, key=abs):g}'
            elif len(polygon) < 6:
                # pycocotools tells by the length of the first whether these are polygons
                crash = not place and len(polygon) <= 4
                kind = 'too few points in the first polygon' if crash else 'too few points'
                yield kind, item, short(polygon)
            elif len(polygon) % 2:
                yield 'odd number of coordinates', item, short(polygon)


def _check_run_lengths(mask: dict, item: str, image: Image) -> Found:
    size, counts = mask.get('size'), mask.get('counts')
    if size is None or not isinstance(counts, (list, str)):
        yield 'RLE without counts or size', item, short(mask)
        return
    if size != [image.height, image.width] and image.height < math.inf:
        yield 'RLE of another size', item, f'{short(size)} in {image.height} x {image.width}'
        return
    try:
        lengths = decode_counts(counts) if isinstance(counts, str) else np.array(counts)
    except ValueError:
        lengths = np.array([])
    if lengths.ndim != 1 or lengths.dtype.kind != 'i' or lengths.min() < 0:
        yield 'broken RLE', item, f'counts {short(counts)}'
        return
    pixels = lengths.sum(dtype=float)  # which does not overflow
    if image.height < math.inf and pixels != image.height * image.width:
        yield 'broken RLE', item, f'counts of {pixels:g} pixels in {image.height} x {image.width}'


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or _is_whole(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _are_numbers(values: list) -> bool:
    try:
        sum(values)
    except (TypeError, OverflowError):  # an integer that no float can hold
        return False
    return True


def _is_finite(values: list) -> bool:
    """Whether they are numbers, none of them NaN or infinite; in C, because there are millions of them."""
    try:
        return math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _entry(item: dict, key: str) -> str:
    return f'{key}={short(item[key])}' if key in item else f'no {key}'
