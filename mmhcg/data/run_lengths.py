"""Masks in COCO's compressed form, read without pycocotools, which trusts them."""

from __future__ import annotations

import numpy as np


def decode_counts(text: str) -> np.ndarray:
    """The run lengths in COCO's compressed form; pycocotools reads past the end of one that was cut off.

    A number stands in pieces of five bits, the lowest first, with a sixth bit where more follow; the highest
    bit of the last piece is the sign. From the fourth on, it is the difference to the last but one.

    Raises:
        ValueError: the text is nothing of the kind.
    """
    codes = np.frombuffer(text.encode('ascii'), np.uint8).astype(np.int64) - 48
    last = (codes & 32) == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("not in COCO's compressed form")
    ends = np.flatnonzero(last) + 1
    pieces = np.diff(ends, prepend=0)
    starts = ends - pieces
    if pieces.max() > 7:
        raise ValueError('a number of more than 35 bits')
    places = np.arange(len(codes)) - np.repeat(starts, pieces)
    numbers = np.add.reduceat((codes & 31) << 5 * places, starts)
    numbers -= np.where(codes[last] & 16, 1 << 5 * pieces, 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers
