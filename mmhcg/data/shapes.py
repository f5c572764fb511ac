"""Write generated scenes as a COCO instance set: same seed, same bytes.

    OUT/shapes.json                            the settings it was made with
    OUT/annotations/instances_train2017.json   and instances_val2017.json
    OUT/train2017/000000000001.png             and val2017/

The layout is COCO's, so `--data-root OUT` works with every COCO config.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

from mmhcg.data.scenes import CLASSES, Item, paint_scene

VERSION = 1  # raise it when the same settings no longer give the same bytes
SPLITS = ('train2017', 'val2017')
MIN_SIZE = 64  # below it the smallest shapes are a handful of pixels
FINE = 4  # polygons run 1 / (2 * FINE) pixel inside the edge of the mask that they stand for
MAX_ITEMS = 100  # annotation id = image id * MAX_ITEMS + place in the picture


def make_shapes(
    out: str | os.PathLike, images: int, seed: int, val_images: int | None = None, size: int = 128
) -> bool:
    """Make the set in the folder `out`; return False, leaving it alone, where the same set is already there.

    `images` pictures to train on, `val_images` held out (default: a fifth of `images`), `size` pixels square.
    Picture i depends on (seed, split, i, size) and on nothing else.

    Raises ValueError for settings that make no set, FileExistsError where `out` holds anything else.
    """
    val_images = max(1, images // 5) if val_images is None else val_images
    if images < 1 or val_images < 1 or seed < 0 or size < MIN_SIZE:
        raise ValueError(
            f'cannot make shapes with images={images}, val_images={val_images}, seed={seed}, size={size}: '
            f'needed are at least 1 image in each split, a seed of 0 or more and a size of {MIN_SIZE} or more'
        )
    settings = dict(version=VERSION, seed=seed, images=images, val_images=val_images, size=size)
    out = Path(out)
    if _holds(out, settings):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and moved there when whole: an interrupted run leaves no half set behind.
    making = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        making.chmod(0o755)  # mkdtemp's 0700 would hide the set from other users
        for split, count in zip(SPLITS, (images, val_images)):
            _write_split(making, split, count, settings)
        (making / 'shapes.json').write_text(json.dumps(settings, indent=1) + '\n')
        if out.exists():
            out.rmdir()  # it is empty; Windows does not rename onto a folder
        making.rename(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return True


def _holds(out: Path, settings: dict) -> bool:
    """True where `out` is a finished set of these settings, False where there is room for one."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / 'shapes.json').read_text())
    except (OSError, ValueError):
        found = None
    if found == settings:
        return True
    what = f'a set made with {found}, wanted is {settings}' if found else 'something that is no set of shapes'
    raise FileExistsError(
        f'{out} holds {what}. Name another folder, or move this one away; nothing was changed.'
    )


def _write_split(root: Path, split: str, count: int, settings: dict) -> None:
    """Write one split's pictures and its annotation file."""
    size = settings['size']
    (root / split).mkdir()
    images, annotations = [], []
    for index in range(count):
        rng = np.random.default_rng([settings['seed'], SPLITS.index(split), index])
        picture, items = paint_scene(rng, size)
        image_id, name = index + 1, f'{index + 1:012d}.png'
        path = root / split / name
        if not cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
            raise OSError(f'cannot write {path}')
        images.append(dict(id=image_id, file_name=name, height=size, width=size))
        for place, item in enumerate(items):
            annotations.append(_annotation(item, image_id, image_id * MAX_ITEMS + place))
    content = dict(
        info=dict(description='generated shapes', **settings),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=name, supercategory='shape') for i, name in enumerate(CLASSES, start=1)],
    )
    (root / 'annotations').mkdir(exist_ok=True)
    (root / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _annotation(item: Item, image_id: int, annotation_id: int) -> dict:
    """COCO's record of one item; box (x, y, w, h) and area are those of its visible pixels."""
    rows, cols = np.flatnonzero(item.visible.any(axis=1)), np.flatnonzero(item.visible.any(axis=0))
    x, y = int(cols[0]), int(rows[0])
    return dict(
        id=annotation_id,
        image_id=image_id,
        category_id=item.label + 1,
        iscrowd=int(item.crowd),
        bbox=[x, y, int(cols[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        area=int(item.visible.sum()),
        segmentation=_run_lengths(item.visible) if item.crowd else mask_polygons(item.visible),
    )


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE, what its crowds have: lengths of runs down the columns, background first."""
    flat = mask.ravel(order='F').astype(np.int8)
    ends = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], ends, [flat.size]])
    counts = np.diff(bounds).tolist()
    return dict(counts=[0, *counts] if flat[0] else counts, size=list(mask.shape))


def mask_polygons(mask: np.ndarray) -> list[list[float]]:
    """Outlines of a bool mask (H, W) as COCO polygons [x0, y0, x1, y1, ...], one for each part.

    COCO's polygons have no holes: a part with a hole is cut through it into two parts.
    """
    fine = mask.astype(np.uint8).repeat(FINE, axis=0).repeat(FINE, axis=1)
    contours, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = [contour for contour, (_, _, _, parent) in zip(contours, tree.reshape(-1, 4)) if parent >= 0]
    if holes:
        x, _, width, _ = cv2.boundingRect(holes[0])
        cut = (x + width // 2) // FINE
        left, right = mask.copy(), mask.copy()
        left[:, cut:], right[:, :cut] = False, False
        return mask_polygons(left) + mask_polygons(right)
    return [((contour.reshape(-1) + 0.5) / FINE).tolist() for contour in contours]
