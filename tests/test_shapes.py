"""The generated set: same seed, same bytes; and every property that it promises, counted."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from tiny_run import REPO

from mmhcg.data import make_shapes, scenes
from mmhcg.data.shapes import mask_polygons

TOOL = REPO / 'tools' / 'make_shapes.py'
IMAGES, VAL_IMAGES, SIZE, SEED = 100, 10, 128, 3


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    """A set of IMAGES + VAL_IMAGES images."""
    out = tmp_path_factory.mktemp('shapes') / 'set'
    assert make_shapes(out, IMAGES, SEED, val_images=VAL_IMAGES, size=SIZE)
    return out


@pytest.fixture(scope='module')
def coco(shapes):
    return COCO(str(shapes / 'annotations' / 'instances_train2017.json'))


@pytest.fixture(scope='module')
def painted():
    """The scenes behind the train images, painted again: image id -> items."""
    return {i + 1: scenes.paint_scene(np.random.default_rng([SEED, 0, i]), SIZE)[1] for i in range(IMAGES)}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_same_seed_gives_the_same_bytes(shapes, tmp_path):
    make_shapes(tmp_path / 'again', IMAGES, SEED, val_images=VAL_IMAGES, size=SIZE)
    first, second = contents(shapes), contents(tmp_path / 'again')
    assert len(first) == IMAGES + VAL_IMAGES + 3  # two annotation files, one of settings
    assert first == second


def test_other_users_may_read_the_set(shapes):
    assert shapes.stat().st_mode & 0o777 == 0o755


def test_every_shape_stands_out_from_its_ground():
    """By 55 grey levels in a channel: to a random colour over a grey ground that happens in 7 of 8 cases."""
    ground = np.full(3, 127.5)
    for seed in range(200):
        colour = scenes._contrasting(np.random.default_rng(seed), ground)
        assert np.abs(colour - ground).max() >= 55


def test_another_seed_and_another_split_give_other_images(shapes, tmp_path):
    make_shapes(tmp_path / 'other', 3, SEED + 1, val_images=3, size=SIZE)
    first, other = contents(shapes), contents(tmp_path / 'other')
    for number in (1, 2, 3):
        name = f'{number:012d}.png'
        assert first[f'train2017/{name}'] != other[f'train2017/{name}']
        assert first[f'train2017/{name}'] != first[f'val2017/{name}']


def test_an_image_does_not_depend_on_how_many_there_are(shapes, tmp_path):
    make_shapes(tmp_path / 'few', 5, SEED, val_images=2, size=SIZE)
    large, few = contents(shapes), contents(tmp_path / 'few')
    pictures = [name for name in few if name.endswith('.png')]
    assert len(pictures) == 7
    assert all(few[name] == large[name] for name in pictures)
    of_large, of_few = (json.loads(files['annotations/instances_train2017.json']) for files in (large, few))
    assert of_few['annotations'] == [ann for ann in of_large['annotations'] if ann['image_id'] <= 5]


def test_no_item_is_lost_and_every_mask_is_what_was_painted(coco, painted):
    assert len(coco.anns) == sum(len(items) for items in painted.values())
    for image_id, items in painted.items():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert [ann['category_id'] - 1 for ann in annotations] == [item.label for item in items]
        for ann, item in zip(annotations, items):
            mask = coco.annToMask(ann).astype(bool)
            assert (mask & item.visible).sum() / (mask | item.visible).sum() > 0.98
            assert item.visible.sum() >= scenes.MIN_VISIBLE * item.painted


def test_boxes_and_areas_are_those_of_the_masks(coco):
    for ann in coco.anns.values():
        mask = coco.annToMask(ann)
        rows, cols = np.nonzero(mask)
        x, y, width, height = ann['bbox']
        assert (cols.min(), rows.min()) == (x, y)
        assert (cols.max() + 1, rows.max() + 1) == (x + width, y + height)
        assert ann['area'] == mask.sum()


def test_visible_masks_of_one_image_are_disjoint(coco):
    for image_id in coco.imgs:
        masks = [coco.annToMask(ann) for ann in coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))]
        assert np.sum(masks, axis=0).max() <= 1


def test_it_is_no_toy(shapes, coco, painted):
    plain = [ann for ann in coco.anns.values() if not ann['iscrowd']]
    crowds = [ann for ann in coco.anns.values() if ann['iscrowd']]
    assert [coco.cats[key]['name'] for key in sorted(coco.cats)] == list(scenes.CLASSES)
    counts = np.bincount([ann['category_id'] for ann in plain], minlength=4)[1:]
    assert counts.min() > 0.2 * len(plain)
    assert 2 <= len(crowds) <= 0.2 * IMAGES
    assert all(isinstance(ann['segmentation'], dict) for ann in crowds)
    assert all(isinstance(ann['segmentation'], list) for ann in plain)
    empty = [key for key in coco.imgs if not coco.getAnnIds(imgIds=[key])]
    assert 2 <= len(empty) <= 0.15 * IMAGES
    hidden = [
        item for items in painted.values() for item in items if item.visible.sum() < 0.95 * item.painted
    ]
    assert len(hidden) > 0.1 * len(plain)
    cut_off = [a for a in plain if min(a['bbox'][:2]) == 0 or a['bbox'][0] + a['bbox'][2] == SIZE]
    assert len(cut_off) > 0.1 * len(plain)
    inside = [a for a in plain if min(a['bbox'][:2]) > 0 and max(np.add(a['bbox'][:2], a['bbox'][2:])) < SIZE]
    sides = [max(ann['bbox'][2:]) for ann in inside]
    assert max(sides) / min(sides) >= 4
    # The ground alone varies by more than the noise of 4 grey levels: it is textured.
    stds = [
        cv2.imread(str(shapes / 'train2017' / coco.imgs[key]['file_name'])).std((0, 1)).max() for key in empty
    ]
    assert min(stds) > 6


@pytest.mark.parametrize(
    'case', ['hole', 'two parts', 'single pixel', 'full frame', 'hole at the edge of a hole']
)
def test_polygons_stand_for_their_mask(case):
    mask = np.zeros((40, 50), bool)
    if case == 'hole':
        mask[5:30, 8:40] = True
        mask[10:20, 15:30] = False
    elif case == 'two parts':
        mask[2:10, 3:30] = mask[20:35, 10:45] = True
    elif case == 'single pixel':
        mask[7, 9] = True
    elif case == 'full frame':
        mask[:] = True
    else:
        mask[5:30, 8:40] = True
        mask[8:14, 15:25] = mask[14:20, 25:30] = False
    parts = coco_mask.frPyObjects(mask_polygons(mask), *mask.shape)
    decoded = coco_mask.decode(coco_mask.merge(parts)).astype(bool)
    assert (decoded & mask).sum() / (decoded | mask).sum() > 0.98


def test_a_finished_set_is_left_alone(shapes):
    before = {path: path.stat().st_mtime_ns for path in shapes.rglob('*')}
    assert make_shapes(shapes, IMAGES, SEED, val_images=VAL_IMAGES, size=SIZE) is False
    assert before == {path: path.stat().st_mtime_ns for path in shapes.rglob('*')}


@pytest.mark.parametrize('found', ['a stranger', 'another set', 'a file'])
def test_nothing_of_the_users_is_overwritten(tmp_path, found):
    out = tmp_path / 'out'
    if found == 'a stranger':
        out.mkdir()
        (out / 'thesis.txt').write_text('years of work')
    elif found == 'another set':
        make_shapes(out, 2, SEED, val_images=1)
    else:
        out.write_text('years of work')
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='Name another folder'):
        make_shapes(out, 3, SEED, val_images=1)
    assert contents(tmp_path) == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('mmhcg.data.shapes._annotation', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_shapes(tmp_path / 'out', 20, SEED)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('wrong', [dict(images=0), dict(val_images=0), dict(seed=-1), dict(size=16)])
def test_settings_that_make_no_set(tmp_path, wrong):
    settings = {**dict(images=2, seed=0, val_images=1, size=SIZE), **wrong}
    with pytest.raises(ValueError, match=f'{next(iter(wrong))}={next(iter(wrong.values()))}'):
        make_shapes(tmp_path / 'out', **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_command_line(tmp_path):
    out = tmp_path / 'out'
    command = [sys.executable, str(TOOL), str(out), '--seed', '1', '--size', '96', '--images']
    done = subprocess.run([*command, '10'], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert len(list((out / 'train2017').iterdir())) == 10
    assert len(list((out / 'val2017').iterdir())) == 2
    assert cv2.imread(str(out / 'val2017' / '000000000001.png')).shape == (96, 96, 3)
    refused = subprocess.run([*command, '20'], capture_output=True, text=True)
    assert refused.returncode == 2
    assert 'Name another folder' in refused.stderr
    assert 'Traceback' not in refused.stderr
