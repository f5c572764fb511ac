"""Mask R-CNN with ResNet-50, the baseline: MMDetection's own recipe."""

_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
