"""An evaluation of what is no number, or not for all images, ends with a message and without an AP."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.structures import DetDataSample, TrackDataSample
from mmengine.structures import InstanceData
from tiny_run import load_tool, write_config, write_data

from mmhcg.runs import UserError, predictions
from mmhcg.runs.config import build_detector
from mmhcg.runs.errors import DivergedError
from mmhcg.runs.predictions import CheckedPredictions, _is_cut

IMAGE = r'\S*shapes/val2017/000000000003\.png \(id 3\)'
HEAD = "model = dict(roi_head=dict(type='SpoiltRoIHead', image=3, what={!r}, value={}))\n"
OTHER_METRIC = "test_evaluator = dict(metric_items=['mAP'])\n"  # for which CocoTwelve does not stand in
NAN_PIXEL = """
test_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='SpoilImage', name='000000000003.png', value=float('nan')),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]))
"""
FAULTS = {  # name: what the config does, the exit code, how the message begins
    'NaN box': (HEAD.format('bboxes', "float('nan')"), 3, f'predictions for {IMAGE}: 1 of .* bboxes are NaN'),
    'infinite score': (
        HEAD.format('scores', "float('inf')") + OTHER_METRIC,
        3,
        f'predictions for {IMAGE}: 1 of .* scores are NaN or infinite',
    ),
    'NaN score, which MMDetection drops as too low': (
        NAN_PIXEL,
        3,
        f'rpn_head put out NaN for {IMAGE}; no s',
    ),
    'low masks': (
        HEAD.format('masks', 0),
        2,
        rf'predictions for {IMAGE}: masks of shape \(\d+, 63, 64\) for',
    ),
    'images left out': (
        'test_dataloader = dict(batch_size=3, drop_last=True)\n' + OTHER_METRIC,
        2,
        r'CocoMetric: predictions for only 3 of the 4 images .* found: 000000000004\.png \(id 4\)\. Give',
    ),
    'annotations of other images': (
        "test_dataloader = dict(dataset=dict(ann_file='annotations/few.json'))",
        2,
        r'CocoTwelve: predictions for only 2 of the 4 images .* found: \S*3\.png \(id 3\), \S*4\.png \(id 4',
    ),
}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    """A folder with tiny.py, shapes/, random weights, and annotations of a part of the images to score."""
    folder = tmp_path_factory.mktemp('tiny')
    config, data = write_config(folder), write_data(folder)
    torch.manual_seed(0)
    torch.save(build_detector(config).state_dict(), folder / 'weights.pth')
    truth = json.loads((data / 'annotations/instances_val2017.json').read_text())
    truth['images'] = truth['images'][:2]
    truth['annotations'] = [one for one in truth['annotations'] if one['image_id'] < 3]
    (data / 'annotations/few.json').write_text(json.dumps(truth))
    return folder


def write_faulty(tiny: Path, folder: Path, fault: str) -> list[str]:
    """A config with a fault, the data it is for and a folder for the log."""
    config = folder / 'faulty.py'
    head = f"_base_ = {str(tiny / 'tiny.py')!r}\ncustom_imports = dict(imports=['bad_numbers'])\n"
    config.write_text(head + fault)
    return [str(config), '--data-root', str(tiny / 'shapes'), '--work-dir', str(folder / 'run')]


@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS)
def test_what_cannot_be_scored_is_not(tiny, tmp_path, capfd, name):
    fault, code, message = FAULTS[name]
    config, *options = write_faulty(tiny, tmp_path, fault)
    with pytest.raises(SystemExit) as stop:
        load_tool('test').main([config, str(tiny / 'weights.pth'), *options])
    printed = capfd.readouterr()
    assert stop.value.code == code
    assert re.search(f'^error: {message}', printed.err, re.M)
    assert 'Average Precision' not in printed.out


@pytest.mark.slow
def test_a_dataset_cut_by_the_config_is_scored_with_a_warning(tiny, tmp_path, capfd):
    config, *options = write_faulty(tiny, tmp_path, 'test_dataloader = dict(dataset=dict(indices=3))')
    load_tool('test').main([config, str(tiny / 'weights.pth'), *options])
    (log,) = (tmp_path / 'run').glob('*/*.log')
    before, warning, after = log.read_text().partition('predictions for only 3 of the 4 images')
    assert warning and 'Evaluating' not in before and 'Evaluating bbox' in after


@pytest.mark.slow
def test_validation_is_held_to_the_same(tiny, tmp_path, capfd):
    argv = [*write_faulty(tiny, tmp_path, FAULTS['NaN box'][0]), '--no-pretrained', '--seed', '0']
    with pytest.raises(SystemExit) as stop:
        load_tool('train').main(argv)
    printed = capfd.readouterr()
    assert stop.value.code == 3 and re.search(IMAGE, printed.err)
    assert 'Average Precision' not in printed.out


def video(*frames: tuple[int, float]) -> TrackDataSample:
    """What a tracker predicts: for each frame, its image's id and the score of one box."""
    samples = []
    for number, score in frames:
        sample = DetDataSample(metainfo=dict(img_id=number, img_path=f'{number}.png'))
        sample.pred_instances = InstanceData(scores=torch.tensor([score]))
        samples.append(sample)
    return TrackDataSample(video_data_samples=samples)


@pytest.fixture
def runner() -> SimpleNamespace:
    """One that validates three images in one batch."""
    metric = SimpleNamespace(
        _coco_api=SimpleNamespace(imgs={n: dict(file_name=f'{n}.png') for n in (1, 2, 3)})
    )
    loader = type('Loader', (list,), dict(dataset=SimpleNamespace()))([0])
    return SimpleNamespace(
        val_loop=SimpleNamespace(dataloader=loader, evaluator=SimpleNamespace(metrics=[metric]))
    )


def test_a_tracker_is_held_to_every_frame_of_a_video(runner):
    hook = CheckedPredictions()
    hook.after_val_iter(runner, 0, None, [video((1, 0.5), (2, 0.5), (3, 0.5))])
    with pytest.raises(UserError, match=r'only 2 of the 3 images .*: 2\.png \(id 2\)'):
        hook.after_val_iter(runner, 0, None, [video((1, 0.5), (3, 0.5))])
    with pytest.raises(DivergedError, match=r'predictions for 2\.png \(id 2\): 1 of 1 scores'):
        hook.after_val_iter(runner, 0, None, [video((1, 0.5), (2, float('nan')))])


def test_what_another_process_has_seen_counts(runner, monkeypatch):
    monkeypatch.setattr(predictions, 'all_gather_object', lambda seen: [seen, others])
    hook, others = CheckedPredictions(), {2}
    hook.after_val_iter(runner, 0, None, [video((1, 0.5), (3, 0.5))])
    others = {1}
    with pytest.raises(UserError, match=r'only 2 of the 3 images .*: 2\.png \(id 2\)'):
        hook.after_val_iter(runner, 0, None, [video((1, 0.5), (3, 0.5))])


@pytest.mark.parametrize(
    ('options', 'cut'),
    [
        (dict(), False),
        (dict(_indices=3), True),
        (dict(filter_cfg=dict(min_size=32)), True),
        (dict(filter_cfg=dict(min_size=32), test_mode=True), False),  # MMDetection filters nothing then
        (dict(filter_cfg={}), False),
    ],
)
def test_a_config_cuts_by_number_or_filter_however_deep_in_wrappers(options, cut):
    dataset = SimpleNamespace(**options)
    whole = SimpleNamespace()
    for wrapped in (dataset, SimpleNamespace(dataset=dataset), SimpleNamespace(datasets=[whole, dataset])):
        assert _is_cut(wrapped) is cut
