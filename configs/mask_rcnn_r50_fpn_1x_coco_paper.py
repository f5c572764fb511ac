"""Mask R-CNN with ResNet-50 in the recipe of HCGNet's authors, boxes and masks as in MMDetection 1.

For testing what was trained with MMDetection 1, and for the published comparison.
"""

# Not MMDetection's legacy_1.x/mask-rcnn_r50_fpn_1x_coco_v1.py: MMEngine does not find paths with such a dot.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'

legacy_coder = dict(type='mmhcg.legacy.LegacyBoxCoder')
legacy_extractor = dict(
    type='mmhcg.legacy.LegacyRoIExtractor', roi_layer=dict(sampling_ratio=2, aligned=False)
)
legacy_nms = dict(offset=1)  # sides of a box are x2 - x1 + 1

model = dict(
    type='mmhcg.legacy.LegacyMaskRCNN',
    rpn_head=dict(
        anchor_generator=dict(type='LegacyAnchorGenerator', center_offset=0.5),
        bbox_coder=legacy_coder,
        loss_bbox=dict(type='SmoothL1Loss', beta=1 / 9),
    ),
    roi_head=dict(
        bbox_roi_extractor=legacy_extractor,
        bbox_head=dict(bbox_coder=legacy_coder, loss_bbox=dict(type='SmoothL1Loss', beta=1.0)),
        mask_roi_extractor=legacy_extractor,
        mask_head=dict(type='mmhcg.legacy.LegacyFCNMaskHead'),
    ),
    # Proposals: min_bbox_size=0 kept all of them in v1, as -1 does today.
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000, nms=legacy_nms, min_bbox_size=-1),
    ),
    test_cfg=dict(rpn=dict(nms=legacy_nms, min_bbox_size=-1), rcnn=dict(nms=legacy_nms)),
)

auto_scale_lr = dict(base_batch_size=4)  # 2 GPUs x 2 images
optim_wrapper = dict(
    optimizer=dict(lr=0.005),  # 0.02 x 4 images / 16
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
