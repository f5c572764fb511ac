"""Boxes and masks as MMDetection 1 understood them, for the experiment that HCGNet was published with.

There a box x1, y1, x2, y2 named its first and last pixel, so that its sides were x2 - x1 + 1. MMDetection 3
keeps v1's anchors and box targets, but with these alone a converted Mask R-CNN R-50 loses 0.5 box AP and 0.3
mask AP (MMDetection's configs/legacy_1.x/README.md, in version 2). What else v1.0rc0 did is here.

A config names a class by its full path, `type='mmhcg.legacy.LegacyMaskRCNN'`. Thus HCGNet itself does not
import mmdet, which users of other OpenMMLab libraries may lack.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models import FCNMaskHead, MaskRCNN, SingleRoIExtractor
from mmdet.models.task_modules import LegacyDeltaXYWHBBoxCoder
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.mask import mask_target
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor


def _move_last(boxes: Tensor, x: float, y: float) -> Tensor:
    """`boxes` (N, 4) with x2 and y2 moved."""
    return boxes + boxes.new_tensor([0, 0, x, y])


def _scale(image: DetDataSample | dict) -> tuple[float, float]:
    """Of x and y, which pipelines leave out where nothing is resized."""
    return image.get('scale_factor', (1, 1))


class LegacyMaskRCNN(MaskRCNN):
    """Mask R-CNN whose parts see last pixels where its user sees edges, as in COCO: x2 = x1 + width.

    v1 subtracted the pixel, one of the original image, when it read annotations, and added it when it wrote
    results.
    """

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample]) -> dict:
        """Losses on annotations with edges."""
        moved = []
        for sample in batch_data_samples:
            x_scale, y_scale = _scale(sample)
            instances = sample.gt_instances.new()
            instances.bboxes = _move_last(instances.bboxes, -x_scale, -y_scale)
            moved.append(sample.new())
            moved[-1].gt_instances = instances
        return super().loss(batch_inputs, moved)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: list[DetDataSample], rescale: bool = True
    ) -> list[DetDataSample]:
        """Detections with edges, of the original image if `rescale`."""
        samples = super().predict(batch_inputs, batch_data_samples, rescale)
        for sample in samples:
            pixel = (1, 1) if rescale else _scale(sample)
            sample.pred_instances.bboxes = _move_last(sample.pred_instances.bboxes, *pixel)
        return samples


class LegacyBoxCoder(LegacyDeltaXYWHBBoxCoder):
    """Box coder that decodes to first and last pixels.

    MMDetection 3 leaves its boxes half a pixel larger on each side, to make up for its metric, which takes x2
    for an edge.
    """

    def decode(
        self,
        bboxes: Tensor,
        pred_bboxes: Tensor,
        max_shape: Sequence[int] | None = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> Tensor:
        """Boxes (N, 4): `bboxes` (N, 4) moved by `pred_bboxes` (N, 4), in an image of `max_shape` (H, W)."""
        boxes = super().decode(bboxes, pred_bboxes, None, wh_ratio_clip)
        boxes = boxes + boxes.new_tensor([0.5, 0.5, -0.5, -0.5])
        if max_shape is not None:
            height, width = max_shape[:2]
            last = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
            boxes = boxes.clamp(min=0).minimum(last)
        return boxes


class LegacyRoIExtractor(SingleRoIExtractor):
    """RoI pooling up to the end of the last pixel; the pyramid's level is chosen by that size, too."""

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """Features (K, C, P, P) of `rois` (K, 5): index of the image, then the box."""
        return super().forward(feats, rois + rois.new_tensor([0, 0, 0, 1, 1]), roi_scale_factor)


class LegacyFCNMaskHead(FCNMaskHead):
    """Mask head that pastes whole pixels: boxes cut to integers, masks resized to these.

    MMDetection samples masks at fractions of a pixel today, a gain of 0.5 mask AP by its compatibility notes.
    """

    def get_targets(
        self,
        sampling_results: list[SamplingResult],
        batch_gt_instances: list[InstanceData],
        rcnn_train_cfg: ConfigDict,
    ) -> Tensor:
        """Binary masks (K, P, P) of what lies in the positive proposals, last pixel included."""
        proposals = [_move_last(result.pos_priors, 1, 1) for result in sampling_results]
        matches = [result.pos_assigned_gt_inds for result in sampling_results]
        return mask_target(proposals, matches, [gt.masks for gt in batch_gt_instances], rcnn_train_cfg)

    def _predict_by_feat_single(
        self,
        mask_preds: Tensor,
        bboxes: Tensor,
        labels: Tensor,
        img_meta: dict,
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
        activate_map: bool = False,
    ) -> Tensor:
        """Masks (N, H, W) of one image; `bboxes` (N, 4) are rescaled in place, as MMDetection expects."""
        scale = bboxes.new_tensor(_scale(img_meta))
        height, width = img_meta['ori_shape'][:2]
        if rescale:
            bboxes /= scale.repeat(2)
        else:
            width, height = (round(side) for side in (scale * scale.new_tensor([width, height])).tolist())
        soft = (mask_preds if activate_map else mask_preds.sigmoid()).float()  # (N, classes or 1, h, w)
        classes = torch.zeros_like(labels) if self.class_agnostic else labels
        soft = soft[torch.arange(len(soft), device=soft.device), classes]  # (N, h, w)
        threshold = rcnn_test_cfg.mask_thr_binary
        dtype = torch.bool if threshold >= 0 else torch.uint8  # as in MMDetection: below 0, soft masks
        masks = soft.new_zeros((len(soft), height, width), dtype=dtype)
        for mask, values, box in zip(masks, soft, bboxes.int().tolist()):
            _paste(mask, values, box, threshold)
        return masks


def _paste(mask: Tensor, soft: Tensor, box: Sequence[int], threshold: float) -> None:
    """Write what of `soft` (h, w), resized to `box`, lies in `mask` (H, W)."""
    x1, y1, x2, y2 = box
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    # OpenCV's bilinear resizing, which v1 used, without leaving the device.
    values = F.interpolate(soft[None, None], (height, width), mode='bilinear', align_corners=False)[0, 0]
    values = values > threshold if threshold >= 0 else values * 255
    window = mask[max(y1, 0) : max(y1 + height, 0), max(x1, 0) : max(x1 + width, 0)]
    window.copy_(values[max(-y1, 0) :, max(-x1, 0) :][: window.shape[0], : window.shape[1]])
