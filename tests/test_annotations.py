"""The reader of annotation files, given anything: faults are told, none is raised, and little is kept."""

from __future__ import annotations

import json
import os
import tracemalloc
from contextlib import redirect_stdout
from copy import deepcopy
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api
from tiny_run import CLASSES

from mmhcg.data import images, json_lists, make_shapes
from mmhcg.data.annotations import AnnotationFile
from mmhcg.data.faults import KINDS, Use
from mmhcg.data.json_lists import json_entries
from mmhcg.data.run_lengths import decode_counts

EXAMPLES = int(os.environ.get('MMHCG_EXAMPLES', 150))  # of files that were changed at random
QUICK = dict(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def test_a_value_without_an_end_is_not_searched_to_the_end_of_the_file(monkeypatch):
    monkeypatch.setattr(json_lists, 'CHUNK', 64)
    monkeypatch.setattr(json_lists, 'LONGEST', 1000)
    assert json_lists._Text(StringIO(json.dumps('x' * 900))).value() == 'x' * 900
    file = StringIO(json.dumps('x' * 2000) + ' ' * 9000)
    with pytest.raises(ValueError, match='Unterminated string'):
        json_lists._Text(file).value()
    assert file.tell() <= 2000


def test_annotations_are_not_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lists, 'CHUNK', 2**13)
    polygon = [float(place % 97) for place in range(500)]
    entry = dict(image_id=1, category_id=1, bbox=[0, 0, 90, 90], area=9.0, iscrowd=0, segmentation=[polygon])
    content = dict(
        annotations=[dict(entry, id=number) for number in range(1, 301)],
        images=[dict(id=1, file_name='1.jpg', width=100, height=100)],
        categories=[dict(id=1, name='a')],
    )
    path = tmp_path / 'large.json'
    path.write_text(json.dumps(content))
    del content
    tracemalloc.start()
    try:
        file = AnnotationFile(path)
        assert not list(file.faults()) and file.annotations == 300
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < path.stat().st_size / 5


# Anything that JSON can say, NaN and infinity as Python writes them included
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(-2, 70) | st.floats() | st.text(max_size=3)
JSON = st.recursive(
    SCALARS,
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=80, **QUICK)
@given(content=st.dictionaries(st.text(max_size=5), JSON, max_size=4), chunk=st.integers(1, 9))
def test_pieces_of_a_file_are_what_json_reads(tmp_path_factory, content, chunk):
    path = tmp_path_factory.getbasetemp() / 'pieces.json'
    path.write_text(
        json.dumps(content, ensure_ascii=chunk % 2 == 0, indent=chunk % 3 or None), 'utf-8', 'surrogatepass'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lists, 'CHUNK', chunk)
        try:
            read = {
                key: list(value) if hasattr(value, '__next__') else value for key, value in json_entries(path)
            }
        except UnicodeDecodeError:  # half a character, which UTF-8 cannot say
            assert chunk % 2
            return
    assert repr(read) == repr(json.loads(json.dumps(content)))  # by repr: NaN is not equal to itself


def places(node, path=()):
    """The path of everything in a JSON tree."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


@st.composite
def mutations(draw, content: dict) -> dict:
    """A copy of `content` in which one to three places hold something else, or nothing."""
    content = deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(content))
        if not every:
            break
        # By the kind of place, of which a coordinate is one, however many there are.
        kinds = sorted({tuple(map(str, (key for key in path if isinstance(key, str)))) for path in every})
        kind = draw(st.sampled_from(kinds))
        *parents, last = draw(
            st.sampled_from([p for p in every if tuple(k for k in p if isinstance(k, str)) == kind])
        )
        node = content
        for key in parents:
            node = node[key]
        if draw(st.booleans()) and draw(st.booleans()):
            del node[last]
        else:
            node[last] = draw(JSON)
    return content


def small_content() -> dict:
    """Two images with a polygon, a list of run lengths and a compressed one."""
    mask = np.zeros((24, 32), np.uint8, order='F')
    mask[5:15, 4:20] = mask[18:20, 25:30] = 1
    compressed = mask_api.encode(mask)['counts'].decode()
    masks = [[[1, 1, 20, 1, 20.5, 20]], dict(size=[24, 32], counts=[24, 100, 644])]
    masks.append(dict(size=[24, 32], counts=compressed))
    box = dict(category_id=1, bbox=[1, 1, 20, 20], area=90, iscrowd=0)
    return dict(
        images=[dict(id=number, file_name=f'{number}.jpg', width=32, height=24) for number in (1, 2)],
        annotations=[
            dict(box, id=n, image_id=1 + n % 2, segmentation=m) for n, m in enumerate(masks, start=1)
        ],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')],
    )


# Of an annotation in an image of 32 x 24: what it says, the kind that is told
EDGES = [
    (dict(bbox=[-1, 5, 9, 9]), []),
    (dict(bbox=[-1.01, 5, 9, 9]), ['bbox beyond the edge']),
    (dict(bbox=[5, -1, 9, 9]), []),
    (dict(bbox=[5, -1.01, 9, 9]), ['bbox beyond the edge']),
    (dict(bbox=[20, 5, 13, 9]), []),
    (dict(bbox=[20, 5, 13.5, 9]), ['bbox beyond the edge']),
    (dict(bbox=[5, 10, 9, 15]), []),
    (dict(bbox=[5, 10, 9, 15.5]), ['bbox beyond the edge']),
    (dict(segmentation=[[1, 1, 20, 1, 320, 20]]), []),
    (dict(segmentation=[[1, 1, 20, 1, 321, 20]]), ['polygon far outside']),
    (dict(segmentation=[[1, 1, 20, -320, 20, 20]]), []),
    (dict(segmentation=[[1, 1, 20, -321, 20, 20]]), ['polygon far outside']),
]


def kinds_of(path: Path, use: Use, **entries) -> list[str]:
    content = small_content()
    content['annotations'][0].update(entries)
    path.write_text(json.dumps(content))
    return [fault.kind for fault in AnnotationFile(path, use).faults()]


@pytest.mark.parametrize(('entries', 'kinds'), EDGES)
def test_a_pixel_beyond_the_image_and_ten_sides_of_a_polygon_are_let_through(tmp_path, entries, kinds):
    assert kinds_of(tmp_path / 'edges.json', Use.ALL, **entries) == kinds


def test_annotation_id_0_matters_only_where_it_is_scored(tmp_path):
    assert kinds_of(tmp_path / 'zero.json', Use.IMAGES | Use.BOXES | Use.MASKS, id=0) == []
    for use in (Use.SCORE, Use.SCORE_MASKS):
        assert kinds_of(tmp_path / 'zero.json', use, id=0) == ['annotation id 0']


@settings(max_examples=EXAMPLES, **QUICK)
@given(content=mutations(small_content()))
def test_whatever_a_file_holds_is_told_and_never_raised(tmp_path_factory, content):
    """And what is let through, MMDetection and pycocotools take: boxes, masks, all of them finite."""
    path = tmp_path_factory.getbasetemp() / 'mutated.json'
    path.write_text(json.dumps(content))
    faults = list(AnnotationFile(path).faults())
    assert all(fault.kind in KINDS and str(fault).startswith(str(path)) for fault in faults)
    if not any(fault.stops for fault in faults):
        read_with_mmdet(path)


def read_with_mmdet(path: Path) -> None:
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    from pycocotools.coco import COCO

    with redirect_stdout(None):
        dataset = CocoDataset(
            ann_file=str(path), metainfo=dict(classes=('a', 'b')), test_mode=True, data_prefix=dict(img='')
        )
        truth = COCO(str(path))
    load = LoadAnnotations(with_bbox=True, with_mask=True)
    for place in range(len(dataset)):
        info = dataset.get_data_info(place)
        loaded = load(dict(info, ori_shape=(info['height'], info['width'])))
        assert loaded['gt_bboxes'].tensor.isfinite().all()
        assert set(np.unique(loaded['gt_masks'].masks)) <= {0, 1}
    for annotation in truth.anns.values():
        if annotation['image_id'] in truth.imgs:
            truth.annToMask(annotation)


@settings(max_examples=150, **QUICK)
@given(data=st.data())
def test_whatever_the_bytes_of_a_file_is_told_and_never_raised(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'bytes.json'
    text = bytearray(json.dumps(small_content()).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.sampled_from([start, start + 1, start + 2, len(text)]))
        text[start:end] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b'[' * 99999, b'"', b'}', b'9' * 9999])
        )
    path.write_bytes(text)
    try:
        json.loads(text)
        whole = True
    except (ValueError, RecursionError):
        whole = False
    kinds = {fault.kind for fault in AnnotationFile(path).faults()}
    assert whole or 'malformed JSON' in kinds


@settings(max_examples=20, **QUICK)
@given(seed=st.integers(0, 10**6), size=st.integers(64, 90))
def test_a_generated_set_has_no_fault(tmp_path_factory, seed, size):
    folder = tmp_path_factory.mktemp('valid')
    make_shapes(folder / 'set', images=3, seed=seed, val_images=1, size=size)
    file = AnnotationFile(folder / 'set/annotations/instances_train2017.json')
    faults = list(file.faults())
    faults += [
        fault for found in images.check_images(file, str(folder / 'set/train2017'), 1) for fault in found
    ]
    assert [fault.kind for fault in faults] in ([], ['no objects'])  # of three pictures, all may be empty
    assert (len(file.images), list(file.categories.values())) == (3, list(CLASSES))


@settings(max_examples=100, **QUICK)
@given(rows=st.integers(1, 9), cols=st.integers(1, 300), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_compressed_run_lengths_are_read_as_pycocotools_writes_them(rows, cols, seed, share):
    mask = np.asfortranarray(np.random.default_rng(seed).random((rows, cols)) < share).astype(np.uint8)
    mask[:, cols // 2 :] = mask[0, 0]  # a long run, for a number of several pieces
    lengths = decode_counts(mask_api.encode(mask)['counts'].decode())
    values = np.arange(len(lengths)) % 2
    assert np.array_equal(np.repeat(values, lengths), mask.ravel(order='F'))


@pytest.mark.parametrize('text', ['', 'o', '0Po', '/', 'p', 'é', 'oooooooo0'])
def test_other_texts_are_no_run_lengths(text):
    with pytest.raises(ValueError):
        decode_counts(text)
