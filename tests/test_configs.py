"""The shipped configs: a fair comparison, and MMDetection's recipes unchanged."""

from __future__ import annotations

import pytest
from config_trees import differences, load, without_scopes
from mmengine.hub import get_config

from mmhcg.registry import MODELS

MASK_R50 = 'mask_rcnn_r50_fpn_1x_coco.py'
HCGNET = {
    'mask_rcnn_hcgnet_b_fpn_1x_coco.py': ('b', [160, 368, 952, 1244]),
    'mask_rcnn_hcgnet_c_fpn_1x_coco.py': ('c', [352, 848, 1720, 2428]),
    'faster_rcnn_hcgnet_b_fpn_1x_coco.py': ('b', [160, 368, 952, 1244]),
}


@pytest.mark.parametrize('name', ['mask_rcnn_hcgnet_b_fpn_1x_coco.py', 'mask_rcnn_hcgnet_c_fpn_1x_coco.py'])
@pytest.mark.parametrize('baseline', [MASK_R50, 'mask_rcnn_r101_fpn_1x_coco.py'])
def test_hcgnet_and_resnet_differ_in_backbone_and_neck_inputs_only(name, baseline):
    assert differences(load(name), load(baseline)) == {'model.backbone', 'model.neck.in_channels'}


@pytest.mark.parametrize(
    ('name', 'original', 'expected'),
    [
        (MASK_R50, 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', set()),
        ('mask_rcnn_r101_fpn_1x_coco.py', 'mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py', set()),
        (
            'faster_rcnn_hcgnet_b_fpn_1x_coco.py',
            'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
            {'model.backbone', 'model.neck.in_channels'},
        ),
    ],
)
def test_recipes_are_those_of_mmdetection(name, original, expected):
    recipe = without_scopes(get_config(f'mmdet::{original}').to_dict())
    assert differences(load(name), recipe) == expected


def test_amp_config_adds_mixed_precision_only():
    amp = load('mask_rcnn_hcgnet_b_fpn_amp_1x_coco.py')
    changed = differences(amp, load('mask_rcnn_hcgnet_b_fpn_1x_coco.py'))
    assert changed == {'optim_wrapper.type', 'optim_wrapper.loss_scale'}
    assert amp['optim_wrapper']['type'] == 'AmpOptimWrapper'
    assert amp['optim_wrapper']['loss_scale'] == 'dynamic'


@pytest.mark.parametrize('name', HCGNET)
def test_backbone_block_is_what_the_neck_expects(name):
    arch, channels = HCGNET[name]
    model = load(name)['model']
    backbone = dict(model['backbone'])
    assert backbone.pop('init_cfg')['checkpoint'] == f'checkpoints/hcgnet_{arch}_in1k.safetensors'
    assert (backbone['arch'], backbone['frozen_stages'], backbone['norm_eval']) == (arch, 1, True)
    assert model['neck']['in_channels'] == channels
    assert list(MODELS.build(backbone).out_channels) == channels
