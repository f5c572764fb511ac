"""What is wrong in the image files that a COCO annotation file lists."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from typing import Any

import cv2
from PIL import Image as Pillow

from mmhcg.data.annotations import AnnotationFile, Image
from mmhcg.data.faults import Fault, Found, judge

ORIENTATION = 0x0112  # EXIF's tag
TURNED = (5, 6, 7, 8)  # its values that exchange width and height
ASKED = 16  # files at once, which matters where a network is between
MAX_PIXELS = 2**25  # decoded at a time, in 134 MB or less


def absent_images(listed: AnnotationFile, folder: str, with_objects: bool = False) -> Iterator[Fault]:
    """The images that are missing or empty, of those `with_objects` or of all."""
    paths = {
        number: os.path.join(folder, image.name)
        for number, image in _named(listed)
        if not with_objects or number in listed.with_objects
    }
    with ThreadPool(ASKED) as pool:
        sizes = pool.imap(_size, paths.values(), chunksize=64)
        for (number, path), size in zip(paths.items(), sizes):
            yield from judge(path, listed.use, _absent(f'image {number!r}', size))


def check_images(listed: AnnotationFile, folder: str, jobs: int) -> Iterator[list[Fault]]:
    """Read every image in `folder` to its end, `jobs` at a time; yields the faults of one after the other."""
    with ThreadPool(jobs) as pool:  # Pillow decodes without the interpreter's lock
        for path, found in pool.imap(partial(_check_image, folder), _named(listed), chunksize=8):
            yield list(judge(path, listed.use, iter(found)))


def _check_image(folder: str, numbered: tuple[Any, Image]) -> tuple[str, list]:
    number, image = numbered
    path = os.path.join(folder, image.name)
    return path, list(_found(path, number, image))


def _found(path: str, number: Any, image: Image) -> Found:
    item, size = f'image {number!r}', _size(path)
    if not size:
        yield from _absent(item, size)
    elif not cv2.haveImageReader(path):
        yield 'no image', item, 'of a format that OpenCV reads'
    else:
        try:
            with Pillow.open(path) as file:
                size = file.size
                file.draft('L', (1, 1))  # JPEG: the smallest of its sizes, which still reads all of the file
                if file.width * file.height > MAX_PIXELS:
                    raise Pillow.DecompressionBombError
                file.load()
                turned = file.getexif().get(ORIENTATION) in TURNED  # OpenCV turns it
        except Pillow.DecompressionBombError:
            yield 'too large to check', item, ''
            return
        except Exception as error:  # a damaged file fails in many ways
            yield 'damaged image', item, f'{type(error).__name__}: {error}'
            return
        width, height = size[::-1] if turned else size
        if image.width < math.inf and (width, height) != (image.width, image.height):
            yield (
                'image of another size',
                item,
                f'{width} x {height} instead of {image.width} x {image.height}',
            )


def _named(listed: AnnotationFile) -> list[tuple[Any, Image]]:
    return [(number, image) for number, image in listed.images.items() if image.name]


def _size(path: str) -> int | None:
    """In bytes; None if it is no file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _absent(item: str, size: int | None) -> Found:
    if size is None:
        yield 'missing image', item, ''
    elif size == 0:
        yield 'empty image', item, '0 bytes'
