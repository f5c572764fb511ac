"""What the new backbone takes over from the old one: weights, what is frozen, norms, checkpointing."""

import re

import pytest
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from tiny_run import CONFIGS
from torch import nn

from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector, load_config
from mmhcg.swap import measure_config, swap_backbone
from mmhcg.swap.old import count_frozen

RETINANET = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
WEIGHTS = 'checkpoints/hcgnet_b_in1k.safetensors'
R18 = dict(type='ResNet', depth=18)
MOBILE = dict(type='MobileNetV2', out_indices=(2, 4, 6))  # strides 8, 16, 32
SWIN = dict(type='SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))


@pytest.fixture
def cfg():
    return load_config(RETINANET)


def swapped(config, **options):
    return swap_backbone(config, **options).model.backbone


@pytest.mark.parametrize(
    'config',
    [
        RETINANET,
        'mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py',  # its init_cfg has no type
        'mmdet::cityscapes/faster-rcnn_r50_fpn_1x_cityscapes.py',  # load_from alone
    ],
)
def test_weights_where_the_old_backbone_had_some(config):
    assert swapped(config).init_cfg == dict(type='Pretrained', checkpoint=WEIGHTS)


def test_weights_among_other_initialisations(cfg):
    cfg.model.backbone.init_cfg = [dict(type='Kaiming', layer='Conv2d'), cfg.model.backbone.init_cfg]
    assert swapped(cfg).init_cfg.checkpoint == WEIGHTS
    cfg.model.backbone.init_cfg.pop()
    assert swapped(cfg).init_cfg is None


def test_weights_that_are_asked_for(cfg):
    cfg.model.backbone.init_cfg = None
    assert swapped(cfg, pretrained=True).init_cfg.checkpoint == WEIGHTS
    assert swapped(cfg, arch='c', pretrained='w.pth').init_cfg.checkpoint == 'w.pth'
    assert swapped(cfg).init_cfg is None


def test_what_starts_at_random_learns(cfg):
    cfg.model.backbone.norm_cfg.requires_grad = False
    for changes in (dict(pretrained=False), dict(config=CONFIGS / 'mask_rcnn_hcgnet_demo_shapes.py')):
        backbone = swapped(**{'config': cfg, **changes})
        assert (backbone.init_cfg, backbone.frozen_stages, backbone.norm_eval) == (None, -1, False)
        assert backbone.norm_cfg.requires_grad is True
    backbone = swapped(cfg, pretrained=False, frozen_stages=2, norm_eval=True)
    assert (backbone.frozen_stages, backbone.norm_eval) == (2, True)


def test_freezing_is_that_of_the_old_backbone_or_as_asked(cfg):
    backbone = swapped(cfg)
    assert (backbone.frozen_stages, backbone.norm_eval) == (1, True)  # as ResNet there
    for asked in (-1, 2, 4):
        backbone = swapped(cfg, frozen_stages=asked, norm_eval=False)
        assert (backbone.frozen_stages, backbone.norm_eval) == (asked, False)
    backbone = swapped('mmdet::efficientnet/retinanet_effb3_fpn_8xb4-crop896-1x_coco.py')
    assert (backbone.frozen_stages, backbone.norm_eval) == (-1, False)  # its 0 freezes nothing
    assert swapped('mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py').norm_eval is True  # it has no such option


@pytest.mark.parametrize(
    ('backbone', 'expected'),
    [
        (R18, -1),
        (dict(R18, frozen_stages=0), 0),
        (dict(R18, frozen_stages=1), 1),
        (dict(R18, frozen_stages=3), 3),
        (dict(R18, frozen_stages=4), 4),
        (dict(R18, frozen_stages=4, out_indices=(0, 1)), 2),
        (dict(R18, frozen_stages=1, out_indices=(1, 2, 3)), 1),
        (dict(R18, frozen_stages=1, out_indices=(3,)), 1),
        (dict(R18, frozen_stages=1, out_indices=(3,), with_cp=True), 1),
        (dict(R18, frozen_stages=-1, norm_cfg=dict(type='BN', requires_grad=False)), -1),
        (dict(MOBILE, frozen_stages=2), 1),
        (dict(MOBILE, frozen_stages=3), 2),
        (dict(MOBILE, frozen_stages=4), 2),  # a part of stride 16 alone
        (dict(MOBILE, frozen_stages=5), 3),
        (dict(MOBILE, frozen_stages=7), 4),
        (dict(SWIN, frozen_stages=1), 1),
        (dict(SWIN, frozen_stages=3), 3),  # whose stages have no convolutions
        (dict(type='CSPDarknet', frozen_stages=1), 1),
    ],
    ids=str,
)
def test_frozen_stages_are_counted_by_strides(backbone, expected):
    """Whatever the old backbone counts: MobileNetV2's seven layers are of strides 2, 4, 8, 16, 16, 32, 32."""
    init_default_scope('mmdet')
    assert count_frozen(MODELS.build(backbone), (4, 8, 16, 32)) == expected


@pytest.mark.parametrize('frozen_stages', [9, 3, -2, '1', 1.0])
def test_frozen_stages_that_are_not_there_are_refused(cfg, frozen_stages):
    cfg.model.backbone.out_indices = (0, 1)
    cfg.model.neck.update(in_channels=[64, 128], start_level=0)
    with pytest.raises(UserError, match=rf'whole number in -1\.\.2 here, not {frozen_stages!r}'):
        swap_backbone(cfg, frozen_stages=frozen_stages)


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        (dict(type='BN', requires_grad=False), dict(type='BN', requires_grad=False)),  # as in caffe configs
        (dict(type='BN', eps=0.001, momentum=0.03), dict(type='BN', requires_grad=True)),
        (dict(type='IN'), dict(type='BN', requires_grad=True)),
        (dict(type=nn.BatchNorm2d), dict(type='BN', requires_grad=True)),
        (dict(type='SyncBN', requires_grad=True), dict(type='SyncBN', requires_grad=True)),
        (dict(type=nn.SyncBatchNorm), dict(type='SyncBN', requires_grad=True)),
        (dict(type='MMSyncBN'), dict(type='SyncBN', requires_grad=True)),
        (dict(type='mmengine.SyncBN'), dict(type='SyncBN', requires_grad=True)),
        (dict(type='mmengine.GN', num_groups=4), dict(type='GN', num_groups=4, requires_grad=True)),
        (dict(type='GN', num_groups=16), dict(type='GN', num_groups=16, requires_grad=True)),
        (dict(type=nn.GroupNorm, num_groups=8), dict(type='GN', num_groups=8, requires_grad=True)),
    ],
    ids=str,
)
def test_norms_stay_where_hcgnet_has_them(cfg, old, new):
    cfg.model.backbone.norm_cfg = old
    backbone = swapped(cfg)
    assert backbone.norm_cfg == new
    assert (backbone.init_cfg is None) == (new['type'] == 'GN')  # there are no weights for it


def test_norms_that_need_other_processes_do_not_stop_it(cfg):
    cfg.model.backbone.norm_cfg = cfg.model.neck.norm_cfg = dict(type='MMSyncBN', requires_grad=True)
    new = swap_backbone(cfg)
    assert new.model.neck.norm_cfg.type == 'MMSyncBN'
    build_detector(new)


def test_checkpointing_stays(cfg):
    assert 'with_cp' not in swapped(cfg)
    cfg.model.backbone.with_cp = True
    assert swapped(cfg).with_cp is True


def test_images_of_other_channels(cfg):
    cfg.model.backbone.in_channels = 4
    assert [level.channels for level in measure_config(cfg)] == [64, 128, 256, 512]
    backbone = swapped(cfg)
    assert (backbone.in_channels, backbone.init_cfg, backbone.frozen_stages) == (4, None, -1)
    backbone = swapped(cfg, pretrained='four_channels.pth')
    assert (backbone.init_cfg.checkpoint, backbone.frozen_stages) == ('four_channels.pth', 1)


@pytest.mark.parametrize('options', [dict(pretrained=1), dict(pretrained=['w.pth']), dict(norm_eval='x')])
def test_options_of_another_type_are_refused(cfg, options):
    (name, value), *_ = options.items()
    with pytest.raises(UserError, match=re.escape(f'or None, not {value!r}')) as error:
        swap_backbone(cfg, **options)
    assert str(error.value).startswith(f'{name} must be ')
