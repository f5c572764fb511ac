"""Mask R-CNN with HCGNet-C."""

_base_ = 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'

model = dict(
    backbone=dict(arch='c', init_cfg=dict(checkpoint='checkpoints/hcgnet_c_in1k.safetensors')),
    neck=dict(in_channels=[352, 848, 1720, 2428]),
)
