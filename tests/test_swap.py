"""HCGNet into other people's configs: the numbers, nothing but the numbers, and what is refused."""

import pytest
import torch
from mmengine.config import Config
from test_configs import differences, without_scopes
from tiny_run import CONFIGS, load_tool

import mmhcg
from mmhcg.analysis.comparison import compare_detectors
from mmhcg.analysis.complexity import count_complexity
from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector, detector_of, load_config
from mmhcg.swap import Level, SwapError, measure_levels, swap_backbone, write_config

B = dict(zip((4, 8, 16, 32), (160, 368, 952, 1244)))  # FACTS, section 1: channels by stride

# Config, strides that it reads, what changes besides the backbone and to what.
CASES = {
    'retinanet/retinanet_r50_fpn_1x_coco': ((4, 8, 16, 32), {'neck.in_channels': [160, 368, 952, 1244]}),
    'retinanet/retinanet_r18_fpn_1x_coco': ((4, 8, 16, 32), {'neck.in_channels': [160, 368, 952, 1244]}),
    'swin/retinanet_swin-t-p4-w7_fpn_1x_coco': ((8, 16, 32), {'neck.in_channels': [368, 952, 1244]}),
    'hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco': (
        (4, 8, 16, 32),
        {'neck.in_channels': [160, 368, 952, 1244]},
    ),
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': (
        (8, 16, 32),
        {'neck.in_channels': [368, 952, 1244]},
    ),
    'detr/detr_r50_8xb2-150e_coco': ((32,), {'neck.in_channels': [1244]}),
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': ((8, 16, 32), {'neck.in_channels': [368, 952, 1244]}),
    'yolox/yolox_tiny_8xb8-300e_coco': ((8, 16, 32), {'neck.in_channels': [368, 952, 1244]}),
    'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco': ((8, 16, 32), {'neck.in_channels': [1244, 952, 368]}),
    'yolof/yolof_r50-c5_8xb8-1x_coco': ((32,), {'neck.in_channels': 1244}),
    'centernet/centernet_r18_8xb16-crop512-140e_coco': ((4, 8, 16, 32), {'neck.in_channels': 1244}),
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': (
        (4, 8, 16, 32),
        {'panoptic_head.in_channels': [160, 368, 952, 1244]},
    ),
    'rpn/rpn_r50-caffe-c4_1x_coco': ((16,), {'rpn_head.in_channels': 952}),
    'ssd/ssd300_coco': (
        (8, 16),
        {
            'neck.in_channels': (368, 952),
            'neck.out_channels': (368, 952, 512, 256, 256, 256),
            'bbox_head.in_channels': (368, 952, 512, 256, 256, 256),
        },
    ),
}


def at(node, path):
    for key in path.split('.'):
        node = node[key]
    return node


@pytest.mark.parametrize('name', CASES)
def test_channels_downstream_change_and_nothing_else(name):
    strides, changed = CASES[name]
    old, new = load_config(f'mmdet::{name}.py'), swap_backbone(f'mmdet::{name}.py')
    found = differences(without_scopes(old.to_dict()), without_scopes(new.to_dict()))
    assert found - {'model.backbone'} == {f'model.{path}' for path in changed}
    assert {path: at(new.model, path) for path in changed} == changed
    model = build_detector(new)
    assert measure_levels(model.backbone) == [Level(B[stride], stride) for stride in strides]


@pytest.mark.parametrize(
    'name',
    [
        'ssd/ssd300_coco',
        'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco',
        'libra_rcnn/libra-retinanet_r50_fpn_1x_coco',
    ],
)
def test_features_flow_to_the_heads(name):
    """Maps of the same sizes as before, and heads that take them."""
    old, new = load_config(f'mmdet::{name}.py'), swap_backbone(f'mmdet::{name}.py')
    image = torch.zeros(1, 3, 320, 320)
    maps = []
    for cfg in (old, new):
        model = build_detector(cfg)
        model.eval()
        with torch.no_grad():
            feats = model.extract_feat(image)
            model.bbox_head(feats)
        maps.append([feat.shape[2:] for feat in feats])
    assert maps[0] == maps[1]


@pytest.mark.parametrize(
    'name',
    [
        'qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base',
        'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
    ],
)
def test_detectors_within_wrappers_are_found(name):
    new = swap_backbone(f'mmdet::{name}.py')
    assert new.model.detector.backbone.type == 'mmhcg.HCGNet'
    assert new.model.detector.neck.in_channels == [160, 368, 952, 1244]


def test_teachers_stay():
    name = 'mmdet::lad/lad_r50-paa-r101_fpn_2xb8_coco_1x.py'
    old, new = load_config(name).model, swap_backbone(name).model
    assert new.backbone.type == 'mmhcg.HCGNet'
    assert (new.teacher_backbone, new.teacher_neck) == (old.teacher_backbone, old.teacher_neck)


def test_the_first_of_several_necks_changes():
    name = 'mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py'
    old, new = load_config(name).model, swap_backbone(name).model
    assert new.neck[0].in_channels == [160, 368, 952, 1244]
    assert dict(new.neck[0], in_channels=[256, 512, 1024, 2048]) == old.neck[0]
    assert new.neck[1] == old.neck[1]  # reads 256 channels, as C2 of the old backbone has


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco', r'shared_head \(ResLayer\) is the last stage'),
        ('tridentnet/tridentnet_r50-caffe_1x_coco', 'shared_head'),
        ('detectors/detectors_cascade-rcnn_r50_1x_coco', 'model.neck.* holds a backbone of its own'),
        ('cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco', r'strides \(4, 4\); HCGNet has one'),
        ('rtmdet/rtmdet_l_swin_b_4xb32-100e_coco', r'maps of \[368, 952, 1244\] channels: .*num_groups'),
        ('rtmdet/rtmdet_x_p6_4xb8-300e_coco', r'strides \(8, 16, 32, 64\); HCGNet has \(4, 8, 16, 32\)'),
    ],
)
def test_what_cannot_be_replaced_is_refused_with_the_reason(name, reason):
    with pytest.raises(SwapError, match=reason):
        swap_backbone(f'mmdet::{name}.py')


def test_weights_of_the_whole_old_detector_are_dropped(tmp_path):
    name = 'mmdet::cityscapes/faster-rcnn_r50_fpn_1x_cityscapes.py'
    old, new = load_config(name), swap_backbone(name)
    assert old.load_from and new.load_from is None
    assert new.model.backbone.init_cfg.checkpoint == 'checkpoints/hcgnet_b_in1k.safetensors'
    write_config(name, old, new, tmp_path / 'swapped.py')
    assert Config.fromfile(tmp_path / 'swapped.py').load_from is None
    new = swap_backbone('mmdet::mask2former_vis/mask2former_r50_8xb2-8e_youtubevis2019.py')
    assert new.model.init_cfg is None
    with pytest.raises(UserError, match=r'must end in \.py'):
        write_config(name, old, new, tmp_path / 'swapped')


def test_a_file_that_would_read_differently_is_not_left_there(tmp_path):
    model = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
    plain = dict(backbone=model.backbone.to_dict(), neck=model.neck.to_dict())
    (tmp_path / 'plain.py').write_text(f'model = {without_scopes(plain)!r}')
    (tmp_path / 'lazy.py').write_text(
        'from mmengine.config import read_base\nwith read_base():\n    from .plain import *\n'
    )
    path = str(tmp_path / 'lazy.py')
    with pytest.raises(UserError, match=r'cannot be inherited from .*use mmhcg\.swap_backbone'):
        write_config(path, load_config(path), swap_backbone(path), tmp_path / 'swapped.py')
    assert not (tmp_path / 'swapped.py').exists()


def test_branches_in_training_are_refused():
    cfg = load_config('mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py')
    cfg.model.roi_head.shared_head = None
    with pytest.raises(SwapError, match='TridentResNet returns 3 maps an image and level when it is trained'):
        swap_backbone(cfg)


def test_all_readers_but_teachers_change():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.aux_head = dict(type='Aux', in_channels=[64, 128, 256, 512])
    cfg.model.teacher = dict(neck=dict(in_channels=[64, 128, 256, 512]))
    cfg.model.bbox_head.in_channels = 64  # as many as C2 has, but it reads the neck
    model = swap_backbone(cfg).model
    assert model.aux_head.in_channels == [160, 368, 952, 1244]
    assert (model.teacher, model.bbox_head.in_channels) == (cfg.model.teacher, 64)


def test_images_of_other_channels():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.backbone.in_channels = 4
    assert swap_backbone(cfg).model.backbone.in_channels == 4


def test_numbers_that_nobody_reads_are_an_error():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.neck.in_channels = [1, 2, 3, 4]
    with pytest.raises(SwapError, match=r'has `in_channels` of \[64, 128, 256, 512\]'):
        swap_backbone(cfg)
    with pytest.raises(UserError, match='has no backbone'):
        swap_backbone(Config(dict(model=dict(type='Nothing'))))
    cfg.model.backbone.type = 'NoNet'
    with pytest.raises(UserError, match='cannot be built: KeyError'):
        swap_backbone(cfg)


def test_weights_and_freezing():
    name = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    backbone = swap_backbone(name).model.backbone
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint='checkpoints/hcgnet_b_in1k.safetensors')
    assert (backbone.frozen_stages, backbone.norm_eval) == (1, True)  # as ResNet there
    backbone = swap_backbone(name, 'c', pretrained='w.pth', frozen_stages=2, norm_eval=False).model.backbone
    assert (backbone.arch, backbone.init_cfg.checkpoint) == ('c', 'w.pth')
    assert (backbone.frozen_stages, backbone.norm_eval) == (2, False)
    backbone = swap_backbone('mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py', pretrained=True).model.backbone
    assert backbone.init_cfg.checkpoint == 'checkpoints/hcgnet_b_in1k.safetensors'
    backbone = swap_backbone('mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py').model.backbone
    assert backbone.init_cfg.checkpoint == 'checkpoints/hcgnet_b_in1k.safetensors'  # its init_cfg has no type
    backbone = swap_backbone('mmdet::efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py').model.backbone
    assert (backbone.frozen_stages, backbone.norm_eval) == (-1, False)  # its 0 freezes nothing
    for changes in (dict(pretrained=False), dict(cfg=CONFIGS / 'mask_rcnn_hcgnet_demo_shapes.py')):
        backbone = swap_backbone(**{'cfg': name, **changes}).model.backbone
        assert (backbone.init_cfg, backbone.frozen_stages, backbone.norm_eval) == (None, -1, False)
    backbone = swap_backbone('mmdet::gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py').model.backbone
    assert backbone.norm_cfg == dict(type='GN', num_groups=32, requires_grad=True)
    assert backbone.init_cfg is None  # there are no weights for GN
    backbone = swap_backbone('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py').model.backbone
    assert backbone.norm_cfg.type == 'SyncBN'


def test_the_config_given_is_left_as_it_is():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    before = cfg.to_dict()
    swap_backbone(cfg)
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    'name',
    ['retinanet/retinanet_r18_fpn_1x_coco', 'libra_rcnn/libra-retinanet_r50_fpn_1x_coco', 'ssd/ssd300_coco'],
)
def test_written_config_is_short_and_loads_without_us(tmp_path, name):
    base = f'mmdet::{name}.py'
    old, new = load_config(base), swap_backbone(base)
    write_config(base, old, new, tmp_path / 'new' / 'swapped.py')
    text = (tmp_path / 'new' / 'swapped.py').read_text()
    assert text.count('\n') < 35
    assert all(len(line) < 101 for line in text.splitlines())
    read = Config.fromfile(tmp_path / 'new' / 'swapped.py')
    assert without_scopes(read.to_dict()) == without_scopes(new.to_dict())
    with pytest.raises(FileExistsError, match='is there already'):
        write_config(base, old, new, tmp_path / 'new' / 'swapped.py')


def test_the_tool_prints_or_writes(tmp_path, capsys):
    (tmp_path / 'mine.py').write_text("_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'\n")
    tool = load_tool('swap_backbone')
    tool.main([str(tmp_path / 'mine.py'), '--arch', 'c'])
    assert 'neck=dict(in_channels=[352, 848, 1720, 2428])' in capsys.readouterr().out
    tool.main([str(tmp_path / 'mine.py'), '--no-pretrained'])
    assert 'init_cfg=None' in capsys.readouterr().out
    tool.main([str(tmp_path / 'mine.py'), '--pretrained', 'w.pth'])
    assert "checkpoint='w.pth'" in capsys.readouterr().out
    tool.main([str(tmp_path / 'mine.py'), '--out', str(tmp_path / 'sub' / 'swapped.py')])
    text = (tmp_path / 'sub' / 'swapped.py').read_text()
    assert "_base_ = '../mine.py'" in text
    assert detector_of(Config.fromfile(tmp_path / 'sub' / 'swapped.py')).backbone.arch == 'b'
    for arguments, message in (
        (['mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py'], 'shared_head'),
        ([str(tmp_path / 'mine.py'), '--out', str(tmp_path / 'sub' / 'swapped.py')], 'is there already'),
    ):
        with pytest.raises(SystemExit, match='2'):
            tool.main(arguments)
        assert message in capsys.readouterr().err


def test_norms_that_need_other_processes_do_not_stop_it():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.backbone.norm_cfg = cfg.model.neck.norm_cfg = dict(type='MMSyncBN', requires_grad=True)
    new = swap_backbone(cfg).model
    assert (new.backbone.norm_cfg.type, new.neck.norm_cfg.type) == ('SyncBN', 'MMSyncBN')
    build_detector(swap_backbone(cfg))


def test_check_compares_and_runs_the_new_detector():
    name = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    old, new = load_config(name), swap_backbone(name)
    lines = compare_detectors(old, new, (64, 96)).splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ['4', '64', '160'], ['8', '128', '368'], ['16', '256', '952'], ['32', '512', '1244']
    ]  # fmt: skip
    counted = [count_complexity(build_detector(cfg), (64, 96)) for cfg in (old, new)]
    parameters, products = (
        [f'{sum(getattr(part, field) for part in parts) / unit:.2f}' for parts in counted]
        for field, unit in (('parameters', 1e6), ('exact', 1e9))
    )
    assert lines[5].split() == ['parameters', parameters[0], 'M', parameters[1], 'M']
    assert lines[6].split() == ['multiply-adds', products[0], 'G', products[1], 'G']
    assert 'a training step: loss' in lines[8]
    assert 'a prediction: done' in lines[9]
    new.model.neck.in_channels = [1, 2, 3, 4]
    with pytest.raises(UserError, match='does not run, but the old one does: RuntimeError'):
        compare_detectors(old, new, (64, 96))
    with pytest.raises(UserError, match='does not run, nor does the old one: RuntimeError'):
        compare_detectors(new, new, (64, 96))


def test_introspection():
    assert mmhcg.list_archs() == ['a1', 'a2', 'a3', 'b', 'c']
    assert mmhcg.swap_backbone is swap_backbone
    for name in ('mask_rcnn_hcgnet_b_fpn_1x_coco', 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'):
        assert mmhcg.get_config(name).to_dict() == Config.fromfile(CONFIGS / f'{name[:30]}.py').to_dict()
    with pytest.raises(FileNotFoundError, match='mask_rcnn_hcgnet_c_fpn_1x_coco'):
        mmhcg.get_config('nonsense')
