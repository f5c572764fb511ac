"""What `--check` tells of a detector before and after, also of one that does not run."""

import pytest
from mmdet.models import ResNet
from tiny_run import load_tool

from mmhcg.analysis.complexity import count_complexity
from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector, load_config
from mmhcg.swap import comparison, swap_backbone
from mmhcg.swap.comparison import compare_detectors

NAME = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
LEVELS = [['4', '64', '160'], ['8', '128', '368'], ['16', '256', '952'], ['32', '512', '1244']]


@pytest.fixture
def both():
    return load_config(NAME), swap_backbone(NAME)


def words(text):
    return [line.split() for line in text.splitlines()]


@pytest.mark.slow
def test_sizes_before_and_now_and_both_steps(both):
    told = []
    lines = words(compare_detectors(*both, (64, 96), told.append))
    assert [text.split()[0] for text in told] == ['building', 'measuring']
    assert lines[0] == ['stride', 'channels', 'before', 'now']
    assert lines[1:5] == LEVELS
    counted = [count_complexity(build_detector(cfg), (64, 96)) for cfg in both]
    for line, title, field, unit, letter in (
        (lines[5], 'parameters', 'parameters', 1e6, 'M'),
        (lines[6], 'multiply-adds', 'exact', 1e9, 'G'),
    ):
        before, now = (f'{sum(getattr(part, field) for part in parts) / unit:.2f}' for parts in counted)
        assert line == [title, before, letter, now, letter]
    assert lines[7] == ['(image', 'of', '64x96)']
    assert lines[8][:4] == ['a', 'training', 'step:', 'loss']
    assert lines[9][:3] == ['a', 'prediction:', 'done,']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        (dict(neck=dict(type='NoNeck')), 'building: KeyError'),
        (dict(neck=dict(in_channels=[1, 2, 3, 4])), 'a training step: RuntimeError'),
        (dict(test_cfg=dict(min_bbox_size='small')), 'a prediction: TypeError'),
    ],
)
def test_the_step_that_fails_is_named(both, change, fault):
    old, new = both
    new.merge_from_dict(dict(model=change))
    with pytest.raises(UserError, match=rf'the new detector fails in {fault}.*the old one gets past this'):
        compare_detectors(old, new, (64, 96))


def test_a_backbone_without_gradient_fails(both, monkeypatch):
    def train_once(model):
        return {'loss': 1.0}, () if isinstance(model.backbone, ResNet) else tuple('abcd')

    monkeypatch.setattr(comparison, 'train_once', train_once)
    with pytest.raises(UserError, match=r'a training step: .*no gradient reaches a, b, c of the'):
        compare_detectors(*both, (64, 96))


def test_detectors_that_tell_no_objects_apart_predict_too(both, monkeypatch):
    monkeypatch.setattr(comparison, 'train_once', lambda model: ({'loss': 1.2345}, ()))
    monkeypatch.setattr(comparison, 'predict_once', lambda model: None)
    assert compare_detectors(*both, (64, 96)).splitlines()[-2:] == [
        'a training step: loss 1.23, with a gradient for all of the backbone that trains',
        'a prediction: done',
    ]


@pytest.mark.slow
def test_where_the_old_detector_fails_too_both_are_told_with_what_can_be_computed(both):
    for cfg in both:
        cfg.model.test_cfg.min_bbox_size = 'small'
    told = []
    lines = compare_detectors(*both, (64, 96), told.append).splitlines()
    assert [text.split()[:2] for text in told][1:] == [['it', 'fails;'], ['measuring', 'both']]
    assert [line.split() for line in lines[1:5]] == LEVELS
    assert lines[-3].startswith('a training step: loss')
    assert lines[-2].startswith('the new detector fails in a prediction: ')
    assert lines[-1].startswith('and the old one in a prediction: ')
    for cfg in both:
        cfg.model.type = 'NoDetector'
    lines = words(compare_detectors(*both, (64, 96)))
    assert lines[1:5] == LEVELS
    assert lines[5:7] == [['parameters', '?', 'M', '?', 'M'], ['multiply-adds', '?', 'G', '?', 'G']]
    assert lines[8][:6] == ['the', 'new', 'detector', 'fails', 'in', 'building:']


@pytest.mark.slow
def test_the_tool_writes_the_file_all_the_same(tmp_path, capsys):
    (tmp_path / 'mine.py').write_text(f"_base_ = {NAME!r}\nmodel = dict(type='NoDetector')\n")
    out = tmp_path / 'new.py'
    load_tool('swap_backbone').main([str(tmp_path / 'mine.py'), '--out', str(out), '--check'])
    told = capsys.readouterr()
    assert 'and the old one in building: KeyError' in told.out
    assert told.err.startswith('building the new detector') and '\r' not in told.err
    assert out.exists()
