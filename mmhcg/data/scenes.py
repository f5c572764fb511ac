"""One generated picture: textured shapes on a textured ground, and which pixel belongs to which of them.

Shapes are painted back to front. A candidate that would show too little of itself, or hide an earlier
shape almost wholly, is refused before it is painted, so that every painted shape can be annotated.

Classes differ in outline and, as things in photographs do, in texture; grounds have the same textures.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ('ellipse', 'rectangle', 'triangle')
PATTERNS = ('plain', 'check', 'stripes')  # of the shapes, by class; a ground has any of them

SIDES = (1 / 6, 0.7)  # shortest and longest extent of a shape, as fractions of the picture's side
CROWD_SIDES = (1 / 16, 1 / 10)  # the same for one member of a crowd
CROWD_MEMBERS = (8, 15)
MAX_SHAPES = 6
MAX_TURN = np.pi / 12  # either way; most things in photographs have an up and a down too
EMPTY_SHARE = 0.05  # of all pictures
CROWD_SHARE = 0.08  # of the pictures that are not empty
MIN_IN_FRAME = 0.5  # share of a shape that must lie inside the picture
MIN_VISIBLE = 0.5  # share of its part in the picture that later shapes must leave uncovered
MIN_CONTRAST = 55  # grey levels between base colours of shape and ground, in the channel that differs most
PLACES = 10  # tried for each shape before it is given up
POINT_BITS = 4  # cv2.fillPoly takes corners in 1/16 pixel


@dataclass
class Item:
    """A painted thing: `painted` pixels at first, `visible` (H, W) bool is what later paint left of them."""

    label: int
    crowd: bool
    visible: np.ndarray
    painted: int


def paint_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[Item]]:
    """Paint one picture: BGR uint8 (size, size, 3), and its items in the order of painting."""
    ground = rng.uniform(40, 215, 3)
    image = ground.astype(np.float32) + _texture(rng, size, PATTERNS[rng.integers(3)], strength=28)
    items: list[Item] = []
    if rng.random() >= EMPTY_SHARE:
        kinds = [True] if rng.random() < CROWD_SHARE else []
        kinds += [False] * int(rng.integers(1, MAX_SHAPES + 1))
        for crowd in kinds:
            item = _place(rng, size, items, crowd)
            if item is not None:
                colour = _contrasting(rng, ground).astype(np.float32)
                paint = colour + _texture(rng, size, PATTERNS[item.label], strength=40)
                np.copyto(image, paint, where=item.visible[..., None])
                for earlier in items:
                    earlier.visible &= ~item.visible
                items.append(item)
    image += 4 * rng.standard_normal(image.shape, dtype=np.float32)  # sensor noise
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), items


def _place(rng: np.random.Generator, size: int, items: list[Item], crowd: bool) -> Item | None:
    """Find a place for one more item, or None where the picture is too full."""
    label = int(rng.integers(len(CLASSES)))
    for _ in range(PLACES):
        outlines = _crowd_outlines(rng, label, size) if crowd else [_shape_outline(rng, label, size)]
        mask = _fill(outlines, size)
        painted = int(mask.sum())
        whole = sum(cv2.contourArea(outline.astype(np.float32)) for outline in outlines)
        if painted <= MIN_IN_FRAME * whole:
            continue
        if all((item.visible & ~mask).sum() >= MIN_VISIBLE * item.painted for item in items):
            return Item(label, crowd, mask, painted)
    return None


def _shape_outline(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    low, high = SIDES
    side = size * low * (high / low) ** rng.random()
    return _outline(rng, label, side) + rng.uniform(-0.02, 1.02, 2) * size


def _crowd_outlines(rng: np.random.Generator, label: int, size: int) -> list[np.ndarray]:
    """A loose heap of small shapes of one class, members may touch."""
    centre = rng.uniform(0.2, 0.8, 2) * size
    members = int(rng.integers(CROWD_MEMBERS[0], CROWD_MEMBERS[1] + 1))
    return [
        _outline(rng, label, size * rng.uniform(*CROWD_SIDES)) + centre + rng.normal(0, 0.1 * size, 2)
        for _ in range(members)
    ]


def _outline(rng: np.random.Generator, label: int, side: float) -> np.ndarray:
    """Corners (n, 2) of a slightly turned shape round the origin, its longest extent about `side` pixels."""
    slim = rng.uniform(0.5, 1.0)
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    if CLASSES[label] == 'ellipse':
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        corners = np.stack([np.cos(angles), slim * np.sin(angles)], axis=1) * side / 2
    elif CLASSES[label] == 'rectangle':
        corners = np.array([[-1, -slim], [1, -slim], [1, slim], [-1, slim]]) * side / 2
    else:
        angles = np.deg2rad(np.array([-90, 30, 150]) + rng.uniform(-15, 15, 3))
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * side / 3**0.5
    if CLASSES[label] != 'triangle' and rng.random() < 0.5:
        corners = corners[:, ::-1]  # taller than wide
    return corners @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def _fill(outlines: list[np.ndarray], size: int) -> np.ndarray:
    """Pixels (size, size) inside any of the outlines."""
    mask = np.zeros((size, size), np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [np.rint(outline * 2**POINT_BITS).astype(np.int32)], 1, shift=POINT_BITS)
    return mask.astype(bool)


def _contrasting(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """A colour (3,) that stands out from the ground in at least one channel."""
    while True:
        colour = rng.uniform(20, 235, 3)
        if np.abs(colour - ground).max() >= MIN_CONTRAST:
            return colour


def _texture(rng: np.random.Generator, size: int, kind: str, strength: float) -> np.ndarray:
    """Offsets (size, size, 3) in grey levels: blotches and a slope, with stripes or a check unless plain."""
    grains = rng.choice([4, 7, 12, 20], 2, replace=False)
    blotches = sum(_blotches(rng, size, int(grain)) for grain in grains)
    cols = np.linspace(-0.5, 0.5, size, dtype=np.float32)[None, :]
    rows = cols.T
    pattern = 0.5 * blotches + _signed(rng, 0.7) * cols + _signed(rng, 0.7) * rows
    if kind != 'plain':
        angle, waves = rng.uniform(0, np.pi), rng.uniform(6, 18) * 2 * np.pi
        u, v = np.float32(waves * np.cos(angle)), np.float32(waves * np.sin(angle))
        stripes = np.sin(u * cols + v * rows)
        pattern += 0.5 * (stripes if kind == 'stripes' else np.sign(stripes * np.sin(u * rows - v * cols)))
    return pattern[..., None] * rng.uniform(0.4 * strength, strength, 3).astype(np.float32)


def _signed(rng: np.random.Generator, bound: float) -> np.float32:
    return np.float32(rng.uniform(-bound, bound))


def _blotches(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise (size, size) in about -1..1 with `cells` blotches a side."""
    grid = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
