"""Mask R-CNN with ResNet-101, the larger baseline: MMDetection's own recipe."""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r101_fpn_1x_coco.py'
