"""HCGNet into other people's configs: the numbers, nothing but the numbers, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from compare_configs import differences, without_scopes
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import Registry
from tiny_run import CONFIGS
from torch import nn

import mmhcg
from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector, load_config
from mmhcg.swap import Level, SwapError, measure_levels, swap_backbone

# HCGNet-B's channels by stride: what comes in, halved after the first, and the growth rate of each module
B = {4: 64 + 3 * 32, 8: 160 // 2 + 6 * 48, 16: 368 // 2 + 12 * 64, 32: 952 // 2 + 8 * 96}

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


def test_branches_in_training_are_refused():
    cfg = load_config('mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py')
    cfg.model.roi_head.shared_head = None
    with pytest.raises(SwapError, match='TridentResNet returns 3 maps an image and level when it is trained'):
        swap_backbone(cfg)


def test_all_readers_but_teachers_change():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.aux_head = dict(type='Aux', in_channels=[64, 128, 256, 512])
    cfg.model.roi_head = dict(shared_head=dict(type='Own', in_channels=[64, 128, 256, 512]))
    cfg.model.teacher = dict(neck=dict(in_channels=[64, 128, 256, 512]))
    cfg.model.bbox_head.in_channels = 64  # as many as C2 has, but it reads the neck
    model = swap_backbone(cfg).model
    assert model.aux_head.in_channels == model.roi_head.shared_head.in_channels == [160, 368, 952, 1244]
    assert (model.teacher, model.bbox_head.in_channels) == (cfg.model.teacher, 64)


def test_numbers_that_nobody_reads_are_an_error():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.neck.in_channels = [1, 2, 3, 4]
    with pytest.raises(SwapError, match=r'has `in_channels` of \[64, 128, 256, 512\]'):
        swap_backbone(cfg)
    for model in (dict(type='Nothing'), dict(backbone=dict(depth=18))):
        with pytest.raises(UserError, match='the config has no backbone'):
            swap_backbone(Config(dict(model=model)))
    cfg.model.backbone.type = 'NoNet'
    with pytest.raises(UserError, match='cannot be built: KeyError'):
        swap_backbone(cfg)


def test_the_config_given_is_left_as_it_is():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    before = cfg.to_dict()
    swap_backbone(cfg)
    assert cfg.to_dict() == before


@MODELS.register_module()
class Averages(nn.Module):
    """A backbone of three lines, which must not be asked for its weights."""

    def __init__(self, strides, channels, pretrained=None):
        super().__init__()
        assert not pretrained
        self.strides, self.convolutions = strides, nn.ModuleList(nn.Conv2d(3, c, 1) for c in channels)

    def forward(self, images):
        return [conv(F.avg_pool2d(images, s)) for s, conv in zip(self.strides, self.convolutions)]


@MODELS.register_module()
class Picky(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        assert in_channels == [7, 8]  # a bare assertion, as necks have it


def averages(*strides, channels=(7, 8), **rest):
    return Config(
        dict(
            model=dict(
                backbone=dict(type='Averages', strides=strides, channels=channels, **rest.pop('own', {})),
                **rest,
            )
        )
    )


def test_maps_from_coarse_to_fine_are_refused_for_their_order():
    cfg = averages(8, 4, neck=dict(type='FPN', in_channels=[7, 8], out_channels=4, num_outs=2))
    with pytest.raises(SwapError, match=r'in the order of strides \(8, 4\); .* returns the finest map first'):
        swap_backbone(cfg)


def test_the_old_weights_are_not_fetched():
    cfg = averages(4, 8, own=dict(pretrained='https://example.org/w.pth'), head=dict(in_channels=[7, 8]))
    assert swap_backbone(cfg).model.backbone.init_cfg.checkpoint.startswith('checkpoints/')


def test_without_a_neck_lists_of_all_levels_change_and_numbers_only_for_one():
    heads = dict(head=dict(in_channels=[7, 8]), extra=dict(in_channels=7))
    model = swap_backbone(averages(4, 8, **heads)).model
    assert (model.head.in_channels, model.extra.in_channels) == ([160, 368], 7)
    heads = dict(
        extractor=dict(roi_layer=dict(type='RoIAlign'), out_channels=7),
        head=dict(in_channels=7, out_channels=7),
    )
    model = swap_backbone(averages(16, channels=(7,), **heads)).model
    assert model.extractor.out_channels == 952
    assert model.head == dict(in_channels=952, out_channels=7)


def test_necks_behind_the_first_stay_also_where_they_read_as_many_channels():
    first = dict(type='FPN', in_channels=[7, 8], out_channels=4, num_outs=2)
    cfg = averages(4, 8, neck=[first, dict(type='Second', in_channels=[7, 8])])
    neck = swap_backbone(cfg).model.neck
    assert (neck[0].in_channels, neck[1].in_channels) == ([160, 368], [7, 8])


def test_a_neck_that_says_nothing_is_told_by_the_type_of_its_error():
    cfg = averages(4, 8, neck=dict(type='Picky', in_channels=[7, 8]))
    with pytest.raises(SwapError, match=r'maps of \[160, 368\] channels: AssertionError'):
        swap_backbone(cfg)


def test_a_classifier_is_no_detector():
    cfg = averages(32, channels=(7,), neck=dict(type='GlobalAveragePooling'), head=dict(in_channels=7))
    with pytest.raises(SwapError, match=r'no detector: its neck \(GlobalAveragePooling\)'):
        swap_backbone(cfg)


def test_random_numbers_stay_as_they_were():
    torch.manual_seed(5)
    swap_backbone(averages(4, 8, neck=dict(type='FPN', in_channels=[7, 8], out_channels=4, num_outs=2)))
    after = torch.rand(3)
    torch.manual_seed(5)
    assert after.equal(torch.rand(3))


def test_configs_are_given_in_any_form():
    cfg = load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')
    assert swap_backbone(cfg.to_dict()).model == swap_backbone(cfg).model
    for nothing in (None, 5):
        with pytest.raises(UserError, match=f'a config is a file, .* not {nothing}'):
            swap_backbone(nothing)
    with pytest.raises(UserError, match="arch must be one of b, c, not 'a1'"):
        swap_backbone(cfg, 'a1')


@pytest.mark.parametrize(
    'folder', ['gn+ws/mask-rcnn_r50_fpn_gn-ws-all_2x_coco.py', 'legacy_1.x/ssd300_coco_v1.py']
)
def test_names_that_mmengine_cannot_parse_lead_to_the_file(folder):
    with pytest.raises(UserError, match='give the file, ') as caught:
        load_config(f'mmdet::{folder}')
    path = str(caught.value).partition('give the file, ')[2]
    assert load_config(path).model.backbone


def test_introspection():
    assert mmhcg.list_archs() == ['a1', 'a2', 'a3', 'b', 'c']
    assert mmhcg.swap_backbone is swap_backbone
    for name in ('mask_rcnn_hcgnet_b_fpn_1x_coco', 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'):
        assert mmhcg.get_config(name).to_dict() == Config.fromfile(CONFIGS / f'{name[:30]}.py').to_dict()
    with pytest.raises(FileNotFoundError, match='mask_rcnn_hcgnet_c_fpn_1x_coco'):
        mmhcg.get_config('nonsense')


@MODELS.register_module()
class Odd(nn.Module):
    """Returns what it is told to."""

    def __init__(self, tested, trained=None):
        super().__init__()
        self.layer, self.tested, self.trained = nn.Conv2d(3, 4, 1), tested, trained or tested

    def forward(self, images):
        feat = self.layer(F.avg_pool2d(images, 4))
        answers = dict(good=[feat], none=None, mixed=[feat, 3], empty=[], flat=feat.flatten(1), bare=feat)
        return answers[self.trained if self.training else self.tested]


@pytest.mark.parametrize('odd', ['none', 'mixed', 'empty', 'flat'])
def test_backbones_that_return_no_maps_are_refused(odd):
    assert measure_levels(Odd('good')) == measure_levels(Odd('bare')) == [Level(4, 4)]
    for network in (Odd(odd), Odd('good', odd)):
        with pytest.raises(SwapError, match='Odd returns something else than a map for each level'):
            measure_levels(network)
    with pytest.raises(SwapError, match="Odd does not run on an image: KeyError: 'absent'"):
        measure_levels(Odd('absent'))


def test_a_number_of_several_levels_is_nobodys():
    cfg = averages(4, 8, channels=(8, 8), neck=dict(type='FPN', in_channels=8, out_channels=4, num_outs=2))
    with pytest.raises(SwapError, match=r'has `in_channels` of \[8, 8\]'):
        swap_backbone(cfg)


def test_heads_that_do_not_read_what_a_neck_passes_on_stay():
    out = (7, 8, 16)
    neck = dict(type='SSDNeck', in_channels=(7, 8), out_channels=out, level_strides=(2,), level_paddings=(1,))
    heads = dict(head=dict(in_channels=out), extra=dict(in_channels=7))
    model = swap_backbone(averages(4, 8, neck=neck, **heads)).model
    assert (model.head.in_channels, model.extra.in_channels) == ((160, 368, 16), 7)


ELSEWHERE = Registry('model', parent=ROOT, scope='elsewhere')


@ELSEWHERE.register_module()
class Foreign(Averages):
    """Known to another library alone."""


def test_types_are_looked_for_in_the_scope_of_the_config():
    cfg = averages(4, 8, head=dict(in_channels=[7, 8]))
    cfg.model.backbone.type = 'Foreign'
    with pytest.raises(UserError, match='Foreign'):
        swap_backbone(cfg)
    cfg.default_scope = 'elsewhere'
    assert swap_backbone(cfg).model.head.in_channels == [160, 368]
