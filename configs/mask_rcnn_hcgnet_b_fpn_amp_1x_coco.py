"""Mask R-CNN with HCGNet-B in mixed precision."""

_base_ = 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
