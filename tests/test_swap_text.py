"""A swapped config as a file, and the command that prints or writes it."""

import os
import re
from pathlib import Path

import pytest
from compare_configs import without_scopes
from mmengine.config import Config
from tiny_run import load_tool

from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector, load_config
from mmhcg.swap import config_text, swap_backbone, write_config
from mmhcg.swap.text import ADVICE, _text

RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
PURE = """
from mmdet.models import FPN, ResNet, RetinaNet
from mmengine.config import read_base
from torch.nn import SyncBatchNorm

model = dict(
    type=RetinaNet,
    backbone=dict(
        type=ResNet,
        depth=18,
        norm_cfg=dict(type=SyncBatchNorm),
        init_cfg=dict(type='Pretrained', checkpoint='x'),
    ),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=8, num_outs=4),
)
"""

# What is different from libra_rcnn/libra-retinanet_r50_fpn_1x_coco, as one would write it.
LIBRA = """
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmhcg.HCGNet',
        arch='b',
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/hcgnet_b_in1k.safetensors'),
    ),
    neck=[
        dict(
            type='FPN',
            in_channels=[160, 368, 952, 1244],
            out_channels=256,
            start_level=1,
            add_extra_convs='on_input',
            num_outs=5,
        ),
        dict(type='BFP', in_channels=256, num_levels=5, refine_level=1, refine_type='non_local'),
    ],
)
"""


@pytest.fixture
def tool():
    return load_tool('swap_backbone').main


@pytest.fixture
def mine(tmp_path):
    """A user's file."""
    path = tmp_path / 'mine.py'
    path.write_text(f'_base_ = {RETINANET!r}\n')
    return str(path)


@pytest.mark.parametrize(
    'name',
    ['retinanet/retinanet_r18_fpn_1x_coco', 'yolof/yolof_r50-c5_8xb8-1x_coco', 'ssd/ssd300_coco'],
)
def test_written_config_is_short_and_loads_without_us(tmp_path, name):
    base = f'mmdet::{name}.py'
    old, new = load_config(base), swap_backbone(base)
    out = tmp_path / 'new' / 'deep' / 'swapped.py'
    text = config_text(base, old, new, out)
    assert text.count('\n') < 35
    assert all(len(line) < 101 for line in text.splitlines())
    write_config(text, out)
    assert without_scopes(Config.fromfile(out).to_dict()) == without_scopes(new.to_dict())
    with pytest.raises(UserError, match='is there already'):
        write_config(text, out)


def test_a_list_of_dicts_is_written_whole_but_not_where_its_types_come_from(tmp_path, capsys, tool):
    (tmp_path / 'mine.py').write_text("_base_ = 'mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py'\n")
    assert '_scope_' in load_config(tmp_path / 'mine.py').model
    tool([str(tmp_path / 'mine.py')])
    path = str(tmp_path / 'mine.py')
    head = f'"""HCGNet-B in {path}\n\n{ADVICE}\n"""\n\n_base_ = {path!r}\n'
    assert capsys.readouterr().out == head + LIBRA


def test_weights_of_the_whole_old_detector_are_dropped(tmp_path):
    name = 'mmdet::cityscapes/faster-rcnn_r50_fpn_1x_cityscapes.py'
    old, new = load_config(name), swap_backbone(name)
    assert old.load_from and new.load_from is None
    assert new.model.backbone.init_cfg.checkpoint == 'checkpoints/hcgnet_b_in1k.safetensors'
    write_config(config_text(name, old, new), tmp_path / 'swapped.py')
    assert Config.fromfile(tmp_path / 'swapped.py').load_from is None
    name = 'mmdet::mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py'
    new = swap_backbone(name)
    assert new.model.init_cfg is None
    assert '\n    init_cfg=None,\n' in config_text(name, load_config(name), new)


def test_a_pure_python_config_is_written_whole(tmp_path, capsys, tool):
    """No text config can inherit from it: this is said at once, with the way out."""
    (tmp_path / 'pure.py').write_text(PURE)
    path = str(tmp_path / 'pure.py')
    for options in ([], ['--out', str(tmp_path / 'new.py'), '--check']):
        with pytest.raises(SystemExit, match='2'):
            tool([path, *options])
        out, err = capsys.readouterr()
        assert out == ''
        assert re.search(rf'no file can inherit from {path}: \w+Error: ', err)
        assert f"mmhcg.swap_backbone('{path}').dump(" in err
    assert not (tmp_path / 'new.py').exists()
    swap_backbone(path).dump(tmp_path / 'new.py')
    cfg = Config.fromfile(tmp_path / 'new.py')
    assert cfg.model.backbone.norm_cfg == dict(type='SyncBN', requires_grad=True)
    assert cfg.model.neck.in_channels == [160, 368, 952, 1244]


@pytest.mark.parametrize('indent', [0, 8])
def test_lines_have_less_than_100_characters(indent):
    fits, long = (['x' * (length - indent - len("['']"))] for length in (99, 100))
    assert _text(fits, indent) == repr(fits)
    assert _text(long, indent).splitlines() == ['[', f'{" " * (indent + 4)}{long[0]!r},', f'{" " * indent}]']


def test_nothing_is_written_but_what_was_asked_for(mine, tmp_path, monkeypatch):
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')
    assert config_text(mine, load_config(mine), swap_backbone(mine))
    assert os.listdir() == []


def test_a_file_that_would_read_differently_is_refused(mine):
    for base in (mine, RETINANET):
        old, new = load_config(base), swap_backbone(base)
        old.model.neck.out_channels = new.model.neck.out_channels = 7  # as no file says
        with pytest.raises(UserError, match=f'no file can inherit from {base}: it reads differently'):
            config_text(base, old, new)


def test_a_disk_that_refuses_is_told(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'mkdir', refuse)
    with pytest.raises(UserError, match='No space left on device'):
        write_config('', tmp_path / 'new.py')


def test_the_tool_prints(mine, capsys, tool):
    tool([mine, '--arch', 'c'])
    assert 'neck=dict(in_channels=[352, 848, 1720, 2428])' in capsys.readouterr().out
    tool([mine, '--no-pretrained'])
    out, err = capsys.readouterr()
    assert 'init_cfg=None' in out and 'note' not in err
    assert f'_base_ = {mine!r}' in out


def test_the_tool_writes(mine, tmp_path, capsys, tool):
    out = tmp_path / 'sub' / 'swapped.py'
    tool([mine, '--out', str(out)])
    assert "_base_ = '../mine.py'" in out.read_text()
    assert build_detector(out).backbone.out_channels == (160, 368, 952, 1244)


def test_weights_that_are_not_there_yet_are_told_of(mine, tmp_path, capsys, tool):
    weights = tmp_path / 'w.pth'
    tool([mine, '--pretrained', str(weights)])
    out, err = capsys.readouterr()
    assert f"checkpoint='{weights}'" in out
    assert f'note: {weights} is not there yet' in err
    weights.touch()
    for there in (str(weights), 'https://example.org/w.pth'):
        tool([mine, '--pretrained', there])
        assert 'note' not in capsys.readouterr().err


@pytest.mark.parametrize(
    ('out', 'message'),
    [
        ('mine.py', 'is there already'),
        ('new', "new' must end in .py"),
        ('', "'' must end in .py"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_at_once(mine, tmp_path, capsys, tool, out, message):
    with pytest.raises(SystemExit, match='2'):
        tool(['no such config', '--out', str(tmp_path / out) if out else ''])
    assert re.search(message, capsys.readouterr().err)


def test_a_folder_that_cannot_be_made_is_an_error(mine, capsys, tool):
    with pytest.raises(SystemExit, match='2'):
        tool([mine, '--out', f'{mine}/new.py'])
    assert 'mine.py' in capsys.readouterr().err


def test_refusals_end_in_a_message(capsys, tool):
    with pytest.raises(SystemExit, match='2'):
        tool(['mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py'])
    assert 'shared_head' in capsys.readouterr().err


def test_a_file_in_a_linked_folder_finds_its_base(mine, tmp_path, tool):
    (tmp_path / 'far' / 'deep').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'far' / 'deep')
    tool([mine, '--out', str(tmp_path / 'link' / 'swapped.py')])
    for folder in ('link', 'far/deep'):
        assert Config.fromfile(tmp_path / folder / 'swapped.py').model.backbone.type == 'mmhcg.HCGNet'
    Path(mine).rename(tmp_path / 'link' / 'mine.py')
    tool([str(tmp_path / 'link' / 'mine.py'), '--out', str(tmp_path / 'link' / 'near.py')])
    assert "_base_ = 'mine.py'" in (tmp_path / 'link' / 'near.py').read_text()
