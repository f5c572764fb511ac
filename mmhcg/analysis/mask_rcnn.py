"""Mask R-CNN as a candidate of the benchmark: a whole training iteration, or a whole prediction."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmhcg  # noqa: F401  before mmdet, for mmcv's operators
from mmhcg.runs.config import build_detector, init_weights, load_config
from mmhcg.runs.pretrained import without_pretrained

OBJECTS = 7  # in an image; COCO has 7.3


class MaskRCNN(nn.Module):
    """A shipped config's Mask R-CNN with random weights: images (N, 3, H, W) to losses, or to predictions.

    Everything is as the config has it: what is frozen, how many regions are sampled and how many proposals
    are looked at. Only predictions have no lower limit of their score, so that a detector that has learned
    nothing draws as many masks as it may, 100.

    Args:
        config: Name of the config, e.g. 'mask_rcnn_hcgnet_b_fpn_1x_coco'.
        with_cp: As in `HCGNet`.
    """

    def __init__(self, config: str, with_cp: bool = False) -> None:
        super().__init__()
        cfg = without_pretrained(load_config(f'mmhcg::{config}.py'))
        cfg.model.test_cfg.rcnn.score_thr = 0.0
        cfg.model.backbone.with_cp = with_cp
        self.model = build_detector(cfg)
        init_weights(self.model)
        self._settle(torch.randn(4, 3, 128, 128))

    def _settle(self, image: Tensor) -> None:
        """Give the norms statistics, as pretrained ones have, lest maps grow from stage to stage."""
        norms = [module for module in self.model.backbone.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        with torch.no_grad():
            self.model.backbone(image)
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum

    def forward(self, image: Tensor) -> Sequence:
        torch.manual_seed(0)  # for the regions that are sampled
        samples = [_sample(image) for _ in image]
        if not self.training:
            return self.model.predict(image, samples)
        losses = self.model.loss(image, samples)
        return [loss for name, value in losses.items() if 'loss' in name for loss in _listed(value)]


def _listed(value: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [value] if isinstance(value, Tensor) else value


def _sample(image: Tensor) -> DetDataSample:
    """Objects of all sizes that COCO distinguishes, as boxes and masks."""
    height, width = image.shape[-2:]
    sizes = torch.logspace(-1.5, -0.3, OBJECTS, device=image.device)[:, None]  # of the image, 3 % to 50 %
    corners = torch.rand(OBJECTS, 2, device=image.device) * (1 - sizes)
    boxes = torch.cat((corners, corners + sizes), 1) * image.new_tensor([width, height, width, height])
    masks = np.zeros((OBJECTS, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top : bottom + 1, left : right + 1] = 1
    shape = (height, width)
    sizes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    sample = DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0), img_id=0))
    sample.gt_instances = InstanceData(
        bboxes=boxes,
        labels=torch.arange(OBJECTS, device=image.device),
        masks=BitmapMasks(masks, *shape),
    )
    return sample
