"""tools/check_data.py: every fault of annotations and images is named, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.registry import init_default_scope
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from tiny_run import CLASSES, load_tool

from mmhcg.data import images, json_lists, make_shapes
from mmhcg.data.annotations import AnnotationFile, decode_counts
from mmhcg.data.faults import KINDS, Use
from mmhcg.data.json_lists import json_entries

NAN, INF = float('nan'), float('inf')
SIZE = 64
QUICK = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    """A set whose held-out part has four pictures, the first of them a JPEG, with 19 objects and no crowd."""
    folder = tmp_path_factory.mktemp('check') / 'shapes'
    make_shapes(folder, images=1, seed=3, val_images=4, size=SIZE)
    path = folder / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    picture = cv2.imread(str(folder / 'val2017' / content['images'][0]['file_name']))
    cv2.imwrite(str(folder / 'val2017/first.jpg'), picture)
    content['images'][0]['file_name'] = 'first.jpg'
    path.write_text(json.dumps(content))
    return folder


@pytest.fixture
def edited(shapes, tmp_path) -> Path:
    """A copy of the set, to spoil."""
    return Path(shutil.copytree(shapes, tmp_path / 'shapes'))


def check(folder: Path, capsys, *options: str) -> tuple[int, list[str], str]:
    """The exit code of the tool, its lines about faults, and its last line."""
    code = 0
    try:
        annotations = folder / 'annotations/instances_val2017.json'
        load_tool('check_data').main([str(annotations), str(folder / 'val2017'), '--jobs', '2', *options])
    except SystemExit as stop:
        code = stop.code
    *lines, last = capsys.readouterr().out.splitlines()
    return code, lines, last


def edit(folder: Path, change) -> None:
    """Put the content of the annotation file, and its first annotation, through `change`."""
    path = folder / 'annotations/instances_val2017.json'
    content = json.loads(path.read_text())
    change(content, content['annotations'][0])
    path.write_text(json.dumps(content))


def set_box(place: int, value: float):
    return lambda content, annotation: annotation['bbox'].__setitem__(place, value)


def set_point(value: float):
    return lambda content, annotation: annotation['segmentation'][0].__setitem__(0, value)


def put(**entries):
    return lambda content, annotation: annotation.update(entries)


def put_image(**entries):
    return lambda content, annotation: content['images'][0].update(entries)


def drop(key: str):
    return lambda content, annotation: annotation.pop(key)


def run_lengths(counts: list | str, size: list | None = None):
    return put(segmentation=dict(counts=counts, size=size or [SIZE, SIZE]))


def same_id(key: str):
    return lambda content, annotation: content[key][1].update(id=content[key][0]['id'])


FILE, FIRST, PICTURE = '', 'annotation 100 of image 1', 'image 1'
# What is done, the kind that is told, of which item, whether it stops a run
FAULTS = {
    'no categories': (lambda c, a: c.pop('categories'), 'no categories', FILE, True),
    'no images': (lambda c, a: c.pop('images'), 'no images', FILE, True),
    'no annotations': (lambda c, a: c.pop('annotations'), 'no annotations', FILE, True),
    'empty lists': (lambda c, a: c['annotations'].clear(), 'no annotations', FILE, True),
    'no area': (drop('area'), 'no area', FIRST, True),
    'no bbox': (drop('bbox'), 'no bbox', FIRST, True),
    'bbox of three': (put(bbox=[1, 2, 3]), 'no bbox', FIRST, True),
    'bbox of text': (put(bbox=['1', '2', '3', '4']), 'no bbox', FIRST, True),
    'no segmentation': (drop('segmentation'), 'no segmentation', FIRST, True),
    'empty segmentation': (put(segmentation=[]), 'no segmentation', FIRST, True),
    'no iscrowd': (drop('iscrowd'), 'no iscrowd', FIRST, True),
    'area 0': (put(area=0), 'area not positive', FIRST, False),
    'width 0': (set_box(2, 0), 'bbox without area', FIRST, False),
    'width negative': (set_box(2, -5), 'bbox without area', FIRST, False),
    'width small': (set_box(2, 0.5), 'bbox below a pixel', FIRST, False),
    'bbox NaN': (set_box(0, NAN), 'NaN in bbox', FIRST, True),
    'bbox infinite': (set_box(2, INF), 'infinity in bbox', FIRST, True),
    'bbox outside': (put(bbox=[1000, 1000, 5, 5]), 'bbox outside', FIRST, False),
    'bbox partly outside': (put(bbox=[-9, 10, 20, 20]), 'bbox beyond the edge', FIRST, False),
    'polygon 1e9': (set_point(1e9), 'polygon far outside', FIRST, True),
    'polygon -1e9': (set_point(-1e9), 'polygon far outside', FIRST, True),
    'polygon NaN': (set_point(NAN), 'NaN or infinity in polygon', FIRST, True),
    'polygon infinite': (set_point(INF), 'NaN or infinity in polygon', FIRST, True),
    'polygon flat': (put(segmentation=[1, 1, 20, 1, 20, 20]), 'odd segmentation', FIRST, True),
    'two points': (put(segmentation=[[1, 1, 9, 9]]), 'too few points in the first polygon', FIRST, True),
    'two points later': (
        lambda c, a: a['segmentation'].append([1, 1, 9, 9]),
        'too few points',
        FIRST,
        False,
    ),
    'half a point': (put(segmentation=[[1, 1, 9, 1, 9, 9, 1]]), 'odd number of coordinates', FIRST, False),
    'RLE short': (run_lengths([0, 100]), 'broken RLE', FIRST, True),
    'RLE long': (run_lengths([0, SIZE * SIZE + 1]), 'broken RLE', FIRST, True),
    'RLE negative': (run_lengths([-5, SIZE * SIZE + 5]), 'broken RLE', FIRST, True),
    'RLE cut': (run_lengths('0Po'), 'broken RLE', FIRST, True),
    'RLE of noise': (run_lengths('é0~'), 'broken RLE', FIRST, True),
    'RLE size': (run_lengths([0, SIZE * SIZE], [32, 128]), 'RLE of another size', FIRST, True),
    'RLE no counts': (
        put(segmentation=dict(size=[SIZE, SIZE])),
        'RLE without counts or size',
        FIRST,
        True,
    ),
    'image twice': (
        lambda c, a: c['images'].append(dict(c['images'][1], id=1)),
        'duplicate image id',
        PICTURE,
        True,
    ),
    'annotation twice': (same_id('annotations'), 'duplicate annotation id', 'annotation 100', True),
    'name twice': (
        lambda c, a: c['categories'].append(dict(id=9, name=CLASSES[0])),
        'duplicate category name',
        'category 9',
        True,
    ),
    'unknown image': (put(image_id=999), 'unknown image', 'annotation 100', False),
    'unknown category': (put(category_id=999), 'unknown category', 'annotation 100', False),
    'annotation 0': (put(id=0), 'annotation id 0', 'annotation 0', False),
    'id of a list': (put(image_id=[1]), 'odd id', 'annotation 100', True),
    'no id': (drop('id'), 'odd id', 'annotations[0]', True),
    'no object': (lambda c, a: c['annotations'].append(7), 'odd item', 'annotations[19]', True),
    'no file name': (lambda c, a: c['images'][0].pop('file_name'), 'odd file name', PICTURE, True),
    'missing image': (put_image(file_name='gone.jpg'), 'missing image', PICTURE, True),
    'parent folder': (
        put_image(file_name='../val2017/first.jpg'),
        'file outside the folder',
        PICTURE,
        False,
    ),
    'other size': (put_image(width=63), 'image of another size', PICTURE, True),
    'no width': (lambda c, a: c['images'][0].pop('width'), 'odd image size', PICTURE, True),
}


@pytest.mark.parametrize('name', FAULTS)
def test_fault_is_named_by_file_and_id(edited, capsys, name):
    change, kind, item, stops = FAULTS[name]
    edit(edited, change)
    code, lines, last = check(edited, capsys)
    assert code == int(stops)
    assert len(lines) == 1, lines
    weight = 'error' if stops else 'warning'
    start = rf'^{weight}: {re.escape(str(edited))}\S*' + (f': {re.escape(item)}' if item else '')
    assert re.match(rf'{start}: {kind}\b.*\({re.escape(KINDS[kind][1])}\)$', lines[0])
    assert f'{weight}s 1 (1 x {kind})' in last
