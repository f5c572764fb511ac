"""Quantiles against NumPy's, IoU against masks by hand, and the tool from end to end on generated shapes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from pycocotools.coco import COCO
from tiny_run import CLASSES, CONFIGS, load_tool, write_config, write_data

from mmhcg.analysis.dissection import Photos, Unit, dissect
from mmhcg.analysis.dissection_pages import _lit, best_units, draw_page, save_units
from mmhcg.analysis.quantiles import StreamingQuantiles
from mmhcg.analysis.stage_maps import StageMaps
from mmhcg.analysis.tables import spread_over
from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector, load_config

ANN = 'annotations/instances_val2017.json'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A folder with tiny.py, its weights tiny.pth, and shapes/."""
    folder = tmp_path_factory.mktemp('dissection')
    torch.manual_seed(0)
    write_data(folder)
    detector = build_detector(write_config(folder))
    with torch.no_grad():
        for _ in range(20):  # norms of an untrained network know no scale
            detector.backbone.train()
            for norm in detector.backbone.modules():
                if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
                    norm.train()
            detector.backbone(torch.randn(4, 3, 64, 64))
    torch.save(dict(state_dict=detector.state_dict()), folder / 'tiny.pth')
    return folder


@pytest.fixture(scope='module')
def photos(folder) -> Photos:
    return Photos(folder / 'shapes' / ANN, folder / 'shapes/val2017')


def activations() -> np.ndarray:
    """Rows of float32 such as networks have, and some that they hardly have."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=30_000)
    rows = [normal.clip(0), normal - 3, np.exp(3 * normal), (normal > 2.7) * normal, 1e6 + normal]
    rows += [np.zeros(30_000), np.full(30_000, -2.5), np.arange(30_000.0) ** 3, -(np.arange(30_000.0) ** 2)]
    late = np.zeros(30_000)  # silent until the last numbers
    late[-200:] = rng.uniform(5, 9, 200)
    return np.array([*rows, late], np.float32)


@pytest.mark.parametrize('bins', [64, 4096])
@pytest.mark.parametrize('q', [0, 0.5, 0.995, 1])
def test_quantiles_are_numpys_within_the_stated_error(bins, q):
    rows = activations()
    quantiles = StreamingQuantiles(len(rows), bins)
    for piece in np.split(rows, [1, 2, 777, 12_000, 29_000], axis=1):
        quantiles.add(torch.from_numpy(piece))
    rows = rows.astype(np.float64)
    expected, least = np.quantile(rows, q, axis=1, method='lower'), rows.min(1)
    found = quantiles.quantile(q).numpy()
    assert (expected - found <= 4 * np.ptp(rows, axis=1) / bins).all()
    assert np.where(expected > least, found < expected, found == least).all()
    assert quantiles.counts.shape == (len(rows), bins)
    assert (quantiles.counts.sum(1) == rows.shape[1]).all()


def test_an_answer_is_below_a_number_on_the_edge_of_two_bins():
    """Else a unit that is nothing but 0 and 1 would have no region."""
    quantiles = StreamingQuantiles(1, 4)
    quantiles.add(torch.tensor([[0.0, 2, 2, 2, 4]]))
    assert quantiles.quantile(0.5) == 1


def test_a_unit_that_is_a_mask_is_a_detector_and_noise_is_none(photos):
    masks = {photos.image(number).tobytes(): photos.masks(number) for number in range(len(photos))}
    rng = np.random.default_rng(0)

    def network(photo):
        found = masks[photo.tobytes()]
        size = photo.shape[:2]
        feat = [found.get(category, np.zeros(size, bool)) for category in range(len(CLASSES))]
        return torch.from_numpy(np.array([*feat, rng.normal(size=size)], np.float32))

    *seeing, noise = dissect(network, photos)
    assert [(unit.category, unit.iou, unit.detector) for unit in seeing] == [
        (name, 1, True) for name in CLASSES
    ]
    assert noise.iou < 0.04 and not noise.detector
    assert len(noise.photos) == 4


def test_a_silent_unit_has_no_region(photos):
    (silent,) = dissect(lambda photo: torch.zeros(1, 4, 4), photos)
    assert (silent.iou, silent.threshold, silent.detector) == (0, 0, False)


def test_a_sample_is_spread_over_the_whole(folder, photos):
    assert spread_over(10, 3) == [0, 3, 6]
    assert spread_over(3, 10) == [0, 1, 2]
    assert Photos(photos.ann, photos.folder, limit=2).ids == [photos.ids[0], photos.ids[2]]


def test_iou_by_brute_force(photos, monkeypatch):
    monkeypatch.setattr('mmhcg.analysis.dissection.AT_ONCE', 3 * 64 * 64)  # three units at a time of eight
    rng = np.random.default_rng(1)
    maps = {}

    def network(photo):
        key = photo.tobytes()
        if key not in maps:
            maps[key] = rng.normal(size=(8, 7, 9)).astype(np.float32) ** 3
        return torch.from_numpy(maps[key])

    units = dissect(network, photos)
    coco, folder = COCO(str(photos.ann)), photos.folder
    both, either = np.zeros((8, 3)), np.zeros((8, 3))
    for key, record in coco.imgs.items():
        feat = maps[cv2.imread(str(folder / record['file_name'])).tobytes()]
        for category in (1, 2, 3):
            mask = np.zeros((64, 64), bool)
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[key], catIds=[category])):
                mask |= coco.annToMask(annotation).astype(bool)
            for unit in units:
                large = cv2.resize(feat[unit.unit], (64, 64), interpolation=cv2.INTER_LINEAR)
                region = large > unit.threshold
                both[unit.unit, category - 1] += (region & mask).sum()
                either[unit.unit, category - 1] += (region | mask).sum()
    iou = both / either
    assert [unit.category for unit in units] == [CLASSES[best] for best in iou.argmax(1)]
    np.testing.assert_allclose([unit.iou for unit in units], iou.max(1), atol=1e-6)
    assert iou.max() > 0.01
    values = np.concatenate([feat.reshape(8, -1) for feat in maps.values()], 1)
    expected = np.quantile(values, 0.995, axis=1, method='lower')
    assert (expected - [unit.threshold for unit in units] <= 4 * np.ptp(values, axis=1) / 4096).all()


def test_a_mask_is_the_union_of_a_categorys_instances(folder, tmp_path):
    content = json.loads((folder / 'shapes' / ANN).read_text())
    for annotation in content['annotations']:
        annotation['category_id'] = 2
    (tmp_path / 'one.json').write_text(json.dumps(content))
    photos = Photos(tmp_path / 'one.json', folder / 'shapes/val2017')
    (category, mask), coco = *photos.masks(0).items(), photos.coco
    parts = [coco.annToMask(coco.anns[key]) for key in coco.getAnnIds(imgIds=[photos.ids[0]])]
    assert photos.categories[category] == CLASSES[1] and len(parts) > 1
    np.testing.assert_array_equal(mask, np.any(parts, axis=0))


def test_photographs_are_those_where_a_unit_is_most_active(folder, tmp_path):
    ann = json.loads((folder / 'shapes/annotations/instances_val2017.json').read_text())
    for item in ann['images']:
        item['id'] = f'no. {item["id"]}'  # as check_data lets pass
    for item in ann['annotations']:
        item['image_id'] = f'no. {item["image_id"]}'
    (tmp_path / 'ann.json').write_text(json.dumps(ann))
    photos = Photos(tmp_path / 'ann.json', folder / 'shapes/val2017')

    def network(photo):
        level = float(photo.mean())
        return torch.tensor([[[level, 0]], [[-level, -300]]])

    means = [photos.image(number).mean() for number in range(len(photos))]
    bright, dark = dissect(network, photos)
    order = tuple(photos.ids[number] for number in np.argsort(means))
    assert bright.photos == order[::-1] and dark.photos == order
    draw_page(network, photos, [bright, dark], tmp_path / 'page.png')
    save_units([bright], tmp_path / 'units.csv')
    assert (tmp_path / 'units.csv').read_text().endswith(f'{" ".join(order[::-1])}\n')


def test_a_stage_is_the_detectors(folder, photos):
    config = load_config(folder / 'tiny.py')
    detector = MODELS.build(config.model)
    detector.load_state_dict(torch.load(folder / 'tiny.pth')['state_dict'])
    photo = photos.image(0)
    data = dict(inputs=[torch.from_numpy(photo).permute(2, 0, 1)])
    with torch.no_grad():
        expected = detector.eval().backbone(detector.data_preprocessor(data)['inputs'])
    torch.save(detector.backbone.state_dict(), folder / 'backbone.pth')
    for number, file in ((2, 'tiny.pth'), (4, 'backbone.pth')):
        stage = StageMaps(folder / 'tiny.py', folder / file, number)
        torch.testing.assert_close(stage(photo), expected[number - 1][0])
    random = StageMaps(folder / 'tiny.py', 'none', 1, side=48)(photo[:40])
    torch.rand(1)  # whatever was drawn before
    (folder / 'frozen.py').write_text("_base_ = 'tiny.py'\nmodel = dict(backbone=dict(frozen_stages=3))")
    assert torch.equal(random, StageMaps(folder / 'frozen.py', 'none', 1, side=48)(photo[:40]))
    assert random.shape == (72, 12, 20)  # of a photograph of 48 x 77


@pytest.mark.parametrize(('base', 'rgb'), [('hcgnet_b_in1k', False), ('hcgnet_a1_cifar10', True)])
def test_a_classifier_sees_photographs_as_it_sees_its_own_data(tmp_path, photos, base, rgb):
    """OpenCV reads ImageNet's files, as BGR; CIFAR's dataset has its pixels as RGB."""
    pytest.importorskip('mmpretrain')
    arch = 'dict(_delete_=True, blocks=(1, 1, 1), growth_rates=(8, 8, 8))'
    base = str(CONFIGS / 'pretrain' / f'{base}.py')
    (tmp_path / 'cls.py').write_text(f'_base_ = {base!r}\nmodel = dict(backbone=dict(arch={arch}))')
    maps, seen = StageMaps(tmp_path / 'cls.py', 'none', 1), []
    maps.backbone.register_forward_pre_hook(lambda backbone, args: seen.append(args[0]))
    maps(photos.image(0))
    own = photos.image(0)[..., ::-1] if rgb else photos.image(0)
    preprocessor = load_config(tmp_path / 'cls.py').model.data_preprocessor
    preprocessor = MODELS.build(dict(preprocessor, type='ClsDataPreprocessor'))
    expected = preprocessor(dict(inputs=torch.from_numpy(own.copy()).permute(2, 0, 1)[None]))['inputs']
    torch.testing.assert_close(seen[0], expected)


def test_tool_writes_units_bars_and_pages(folder, capsys):
    argv = [folder / 'tiny.py', folder / 'tiny.pth', '--against', folder / 'tiny.py', 'none', '--stage', '2']
    argv += ['--ann', folder / 'shapes' / ANN, '--images', folder / 'shapes/val2017', '--out', folder / 'out']
    (folder / 'out').mkdir()  # empty
    load_tool('dissect').main(list(map(str, [*argv, '--limit', 3])))
    told, warned = capsys.readouterr()
    assert 'warning: 3 photographs say little' in warned
    units = list(csv.DictReader((folder / 'out/units.csv').open(newline='')))
    bars = list(csv.DictReader((folder / 'out/detectors.csv').open(newline='')))
    names = ['tiny (tiny)', 'tiny (random weights)']
    assert [(row['network'], int(row['unit'])) for row in units] == [(n, i) for n in names for i in range(44)]
    assert all((float(row['iou']) > 0.04) == (row['detector'] == 'True') for row in units)
    for name in names:
        seen = [row['category'] for row in units if row['network'] == name and row['detector'] == 'True']
        assert seen
        expected = {category: str(seen.count(category)) for category in set(seen)}
        assert {bar['category']: bar['detectors'] for bar in bars if bar['network'] == name} == expected
        assert f'{name}, stage 2: {len(set(seen))} unique detectors (categories), {len(seen)} detect' in told
    for picture in ('detectors.png', 'top_units_1.png', 'top_units_2.png'):
        assert (folder / 'out' / picture).stat().st_size > 5000
    before = {path: path.read_bytes() for path in (folder / 'out').iterdir()}
    with pytest.raises(SystemExit):
        load_tool('dissect').main(list(map(str, argv)))
    assert f'{folder / "out"} is there already: name another folder by --out' in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (folder / 'out').iterdir()} == before


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_what_is_there_is_told_before_anything_is_read(tmp_path, capsys, kind):
    out = tmp_path / 'out'
    (out if kind == 'file' else out / 'of an earlier run').mkdir(parents=True)
    if kind == 'file':
        out.rmdir()
        out.write_text('of an earlier run')
    argv = ['gone.py', 'gone.pth', '--ann', 'gone.json', '--images', 'gone', '--out', str(out)]
    with pytest.raises(SystemExit) as error:
        load_tool('dissect').main(argv)
    assert error.value.code == 2
    message = 'is not a folder' if kind == 'file' else 'is there already'
    assert f'{out} {message}' in capsys.readouterr().err


def test_the_page_shows_the_best_unit_of_each_category_the_best_first():
    def unit(number, category, iou):
        return Unit('net', 4, number, category, iou, 0.0, iou > 0.04, '')

    units = [unit(0, 'cat', 0.1), unit(1, 'dog', 0.3), unit(2, 'cat', 0.2), unit(3, 'dog', 0.05)]
    assert [unit.unit for unit in best_units(units)] == [1, 2]
    many = [unit(number, f'category {number}', number / 100) for number in range(20)]
    assert [unit.unit for unit in best_units(many)] == [*range(19, 7, -1)]  # twelve on a page


def test_a_page_is_bright_where_a_unit_is_active():
    photo = np.full((4, 6, 3), 100, np.uint8)
    feat = torch.zeros(4, 6)
    feat[:, 3:] = 2
    assert _lit(photo, feat, 1.0)[:, :3].max() == 40
    lit = _lit(photo, feat, 1.0)[:, 3:]
    assert (lit[0] == (0, 255, 255)).all() and (lit[1:-1, 1] == 100).all()  # outline and inside


def broken(folder: Path, **changes: object) -> Path:
    """The annotations with the first record of these lists changed."""
    content = json.loads((folder / 'shapes' / ANN).read_text())
    for key, change in changes.items():
        content[key][0].update(change)
    path = folder / 'broken.json'
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(images=dict(file_name='gone.jpg')), r'val2017: no file gone.jpg, nor 0 more of the 4'),
        (dict(annotations=dict(segmentation=None)), 'annotation 100 has no segmentation'),
        (dict(images=dict(height=65)), 'another size than .*broken.json says'),
    ],
)
def test_broken_sets_are_named(folder, changes, message):
    with pytest.raises(UserError, match=message):
        Photos(broken(folder, **changes), folder / 'shapes/val2017').image(0)


def test_activations_that_are_no_numbers_are_named(photos):
    with pytest.raises(UserError, match=f'image {photos.ids[0]}: activations are NaN or infinite'):
        dissect(lambda photo: torch.tensor([[[0.0, torch.inf]]]), photos)


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['none', '--limit', '0'], '--limit must be positive, not 0'),
        (['gone.pth'], 'no checkpoint at .*gone.pth'),
        (['none', '--stage', '5'], r'no stage 5 \(counted from 1\) of its backbone'),
        (['none', '--stage', '0'], '--stage 0: stages are counted from 1'),
        (['tiny.pth', '--against', 'tiny.py', 'tiny.pth'], 'has the names of what it is compared with'),
        (['heads.pth'], 'does not fit HCGNet'),
    ],
)
def test_tool_says_what_is_missing(folder, argv, message, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save({'backbone.other': torch.zeros(1)}, 'heads.pth')
    argv = ['tiny.py', *argv, '--ann', f'shapes/{ANN}', '--images', 'shapes/val2017']
    with pytest.raises(SystemExit) as error:
        load_tool('dissect').main(argv)
    assert error.value.code == 2
    assert re.search(f'^error: .*{message}', capsys.readouterr().err, re.M)
