"""tools/check_data.py: every fault of annotations and images is named, and nothing else is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import pytest
from PIL import Image
from tiny_run import CLASSES, load_tool

from mmhcg.data import images, make_shapes
from mmhcg.data.faults import KINDS

NAN, INF = float('nan'), float('inf')
SIZE = 64


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


FILE, FIRST, PICTURE = '', 'annotation 100 of image 1', 'image 1'
# What is done, the kind that is told, of which item, whether it stops a run
FAULTS = {
    'no categories': (lambda c, a: c.pop('categories'), 'no categories', FILE, True),
    'no images': (lambda c, a: c.pop('images'), 'no images', FILE, True),
    'no annotations': (lambda c, a: c.pop('annotations'), 'no annotations', FILE, True),
    'empty list': (lambda c, a: c['annotations'].clear(), 'no objects', FILE, True),
    'no area': (drop('area'), 'no area', FIRST, True),
    'no bbox': (drop('bbox'), 'no bbox', FIRST, True),
    'bbox of three': (put(bbox=[1, 2, 3]), 'no bbox', FIRST, True),
    'bbox of text': (put(bbox=['1', '2', '3', '4']), 'no bbox', FIRST, True),
    'no segmentation': (drop('segmentation'), 'no segmentation', FIRST, True),
    'empty segmentation': (put(segmentation=[]), 'no segmentation', FIRST, True),
    'no iscrowd': (drop('iscrowd'), 'no iscrowd', FIRST, True),
    'area 0': (put(area=0), 'area not positive', FIRST, False),
    'area NaN': (put(area=NAN), 'NaN in area', FIRST, False),
    'width 0': (set_box(2, 0), 'bbox without area', FIRST, False),
    'height 0': (set_box(3, 0), 'bbox without area', FIRST, False),
    'width negative': (set_box(2, -5), 'bbox without area', FIRST, False),
    'width small': (set_box(2, 0.5), 'bbox below a pixel', FIRST, False),
    'bbox NaN': (set_box(0, NAN), 'NaN in bbox', FIRST, True),
    'bbox infinite': (set_box(2, INF), 'infinity in bbox', FIRST, True),
    'bbox of more than a float holds': (set_box(2, 10**400), 'infinity in bbox', FIRST, True),
    'bbox outside': (put(bbox=[1000, 1000, 5, 5]), 'bbox outside', FIRST, False),
    'bbox on the right': (set_box(0, SIZE), 'bbox outside', FIRST, False),
    'bbox on the left': (set_box(0, -17), 'bbox outside', FIRST, False),
    'bbox partly outside': (put(bbox=[-9, 10, 20, 20]), 'bbox beyond the edge', FIRST, False),
    'polygon 1e9': (set_point(1e9), 'polygon far outside', FIRST, True),
    'polygon -1e9': (set_point(-1e9), 'polygon far outside', FIRST, True),
    'polygon NaN': (set_point(NAN), 'NaN or infinity in polygon', FIRST, True),
    'polygon infinite': (set_point(INF), 'NaN or infinity in polygon', FIRST, True),
    'polygon flat': (put(segmentation=[1, 1, 20, 1, 20, 20]), 'malformed segmentation', FIRST, True),
    'two points': (put(segmentation=[[1, 1, 9, 9]]), 'too few points in the first polygon', FIRST, True),
    'two points later': (
        lambda c, a: a['segmentation'].append([1, 1, 9, 9]),
        'too few points',
        FIRST,
        False,
    ),
    'two points and a half': (put(segmentation=[[1, 1, 9, 9, 1]]), 'too few points', FIRST, False),
    'half a point': (put(segmentation=[[1, 1, 9, 1, 9, 9, 1]]), 'odd number of coordinates', FIRST, False),
    'RLE short': (run_lengths([0, 100]), 'broken RLE', FIRST, True),
    'RLE long': (run_lengths([0, SIZE * SIZE + 1]), 'broken RLE', FIRST, True),
    'RLE negative': (run_lengths([-5, SIZE * SIZE + 5]), 'broken RLE', FIRST, True),
    'RLE beyond 64 bits': (run_lengths([2**63, 2**63, SIZE * SIZE]), 'broken RLE', FIRST, True),
    'RLE that wraps': (run_lengths([2**62] * 4 + [SIZE * SIZE]), 'broken RLE', FIRST, True),
    'RLE of fractions': (run_lengths([0.5, SIZE * SIZE - 0.5]), 'broken RLE', FIRST, True),
    'RLE of lists': (run_lengths([[0], [SIZE * SIZE]]), 'broken RLE', FIRST, True),
    'RLE of nothing': (run_lengths([]), 'broken RLE', FIRST, True),
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
    'annotation twice': (
        lambda c, a: c['annotations'][1].update(id=100),
        'duplicate annotation id',
        'annotation 100',
        True,
    ),
    'category twice': (
        lambda c, a: c['categories'].append(dict(id=3, name='circle')),
        'duplicate category id',
        'category 3',
        True,
    ),
    'name twice': (
        lambda c, a: c['categories'].append(dict(id=9, name=CLASSES[0])),
        'duplicate category name',
        'category 9',
        True,
    ),
    'unknown image': (put(image_id=999), 'unknown image', 'annotation 100', False),
    'unknown category': (put(category_id=999), 'unknown category', 'annotation 100', False),
    'annotation 0': (put(id=0), 'annotation id 0', 'annotation 0', False),
    'id of a list': (put(image_id=[1]), 'malformed id', 'annotation 100', True),
    'no id': (drop('id'), 'malformed id', 'annotations[0]', True),
    'no object': (lambda c, a: c['annotations'].append(7), 'malformed item', 'annotations[19]', True),
    'no file name': (lambda c, a: c['images'][0].pop('file_name'), 'malformed file name', PICTURE, True),
    'missing image': (put_image(file_name='gone.jpg'), 'missing image', PICTURE, True),
    'parent folder': (
        put_image(file_name='../val2017/first.jpg'),
        'file outside the folder',
        PICTURE,
        False,
    ),
    'other size': (put_image(width=63), 'image of another size', PICTURE, True),
    'no width': (lambda c, a: c['images'][0].pop('width'), 'malformed image size', PICTURE, True),
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


IMAGE_FILES = {
    'zero bytes': (lambda data: b'', 'empty image'),
    'text': (lambda data: b'not a picture at all', 'no image'),
    'half a JPEG': (lambda data: data[: len(data) // 2], 'damaged image'),
    'JPEG without its last tenth': (lambda data: data[: len(data) * 9 // 10], 'damaged image'),
}


@pytest.mark.parametrize('name', IMAGE_FILES)
def test_image_file_is_named_by_file_and_id(edited, capsys, name):
    change, kind = IMAGE_FILES[name]
    path = edited / 'val2017/first.jpg'
    path.write_bytes(change(path.read_bytes()))
    code, lines, _ = check(edited, capsys)
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith(f'error: {path}: image 1: {kind}, ')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_read_as_opencv_turns_them(edited, capsys, orientation):
    picture = Image.new('RGB', (20, 30))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(edited / 'val2017/first.jpg', exif=exif)
    height, width = cv2.imread(str(edited / 'val2017/first.jpg')).shape[:2]
    assert {height, width} == {20, 30}
    edit(edited, lambda c, a: c['images'][0].update(height=height, width=width))
    assert not [line for line in check(edited, capsys)[1] if 'another size' in line]
    edit(edited, lambda c, a: c['images'][0].update(height=width, width=height))
    told = f'image of another size, {width} x {height} instead of {height} x {width}'
    assert told in check(edited, capsys)[1][-1]


@pytest.mark.parametrize(('limit', 'too_large'), [(SIZE * SIZE, ()), (SIZE * SIZE - 1, (2, 3, 4))])
def test_large_images_are_not_decoded(edited, capsys, monkeypatch, limit, too_large):
    monkeypatch.setattr(images, 'MAX_PIXELS', limit)  # of a JPEG, an eighth of the side is decoded
    code, lines, _ = check(edited, capsys)
    assert code == 0
    assert [re.search(r'image \d: [a-z ]+', line)[0] for line in lines] == [
        f'image {number}: too large to check ' for number in too_large
    ]


def test_absolute_file_names_are_named(edited, capsys):
    edit(edited, lambda c, a: c['images'][0].update(file_name=str(edited / 'val2017/first.jpg')))
    code, lines, _ = check(edited, capsys)
    assert code == 0 and len(lines) == 1
    assert 'image 1: file outside the folder' in lines[0]


@pytest.mark.parametrize('text', ['', '{', '[]', '{"images": [}', '{"images": [], "images": []}', '{} {}'])
def test_malformed_json_is_told_with_its_place(edited, capsys, text):
    path = edited / 'annotations/instances_val2017.json'
    path.write_text(text)
    code, lines, _ = check(edited, capsys)
    assert code == 1 and len(lines) == 1
    assert re.match(rf'error: {path}: malformed JSON, .* at character \d+, near ', lines[0])


def test_cut_off_json_keeps_what_was_found_before(edited, capsys):
    edit(edited, put_image(width=None))
    path = edited / 'annotations/instances_val2017.json'
    path.write_bytes(path.read_bytes()[:-100])
    code, lines, _ = check(edited, capsys)
    assert code == 1
    assert ['malformed image size' in lines[0], 'malformed JSON' in lines[1]] == [True, True]


def test_all_faults_are_named_in_one_pass(edited, capsys):
    def spoil(content, annotation):
        annotation['bbox'][2] = -1
        content['annotations'][1].pop('area')
        content['annotations'][2].update(segmentation=[[1e9, 0, 5, 5, 9, 9]], image_id=1)
        content['images'][3]['file_name'] = 'g\none\ud800.jpg'

    edit(edited, spoil)
    code, lines, last = check(edited, capsys)
    assert code == 1
    found = [re.search(r'(annotation|image) \d+\b.*?: ([\w ]*\w)', line).group(1, 2) for line in lines]
    assert found == [
        ('annotation', 'bbox without area'),
        ('annotation', 'no area'),
        ('annotation', 'polygon far outside'),
        ('image', 'missing image'),
    ]
    assert r'val2017/g\none\ud800.jpg' in lines[-1]
    assert last.endswith(
        '4 images, 19 annotations, 3 categories; '
        'errors 3 (1 x no area, 1 x polygon far outside, 1 x missing image); '
        'warnings 1 (1 x bbox without area)'
    )


def test_boxes_alone_need_no_masks_and_the_file_no_images(edited, capsys):
    edit(edited, lambda c, a: [annotation.pop('segmentation') for annotation in c['annotations']])
    shutil.rmtree(edited / 'val2017')
    (edited / 'val2017').mkdir()
    assert check(edited, capsys, '--no-masks', '--no-images')[:2] == (0, [])
    code, lines, _ = check(edited, capsys)
    assert code == 1 and len(lines) == 19 + 4


@pytest.mark.parametrize('missing', ['annotations/instances_val2017.json', 'val2017'])
def test_nothing_to_check_is_exit_code_2(edited, capsys, missing):
    (edited / missing).rename(edited / 'elsewhere')
    argv = [edited / 'annotations/instances_val2017.json', edited / 'val2017']
    with pytest.raises(SystemExit) as stop:
        load_tool('check_data').main(list(map(str, argv)))
    assert stop.value.code == 2
    assert str(edited / missing) in capsys.readouterr().err


def test_somebody_has_to_read_the_images(shapes, capsys):
    argv = [shapes / 'annotations/instances_val2017.json', shapes / 'val2017', '--jobs', 0]
    with pytest.raises(SystemExit) as stop:
        load_tool('check_data').main(list(map(str, argv)))
    assert stop.value.code == 2
    assert 'error: --jobs 0: ' in capsys.readouterr().err
