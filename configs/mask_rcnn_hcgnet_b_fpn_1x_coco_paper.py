"""Mask R-CNN with HCGNet-B as it was published: its authors' recipe, boxes and masks as in MMDetection 1.

Scores the authors' detection checkpoint, once converted.
"""

_base_ = 'mask_rcnn_r50_fpn_1x_coco_paper.py'

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
    neck=dict(in_channels=[160, 368, 952, 1244]),
)
