"""One training step and one prediction of any MMDetection detector, on small random images.

What a detector needs beside images and boxes (masks, semantic maps, proposals, videos) is read off the built
model, so that a backbone can be tried in detectors that nobody listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from mmdet.models import DetDataPreprocessor, TrackDataPreprocessor
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmdet.structures import DetDataSample, TrackDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mmhcg.runs.config import alone, dicts_of, init_weights
from mmhcg.runs.pretrained import without_pretrained

OBJECTS = 20  # that a model proposes or finds at most
SAMPLES = 64  # boxes that a head learns from
FRAMES = 2  # of a video: the key frame and its reference
BOXES = (  # x1, y1, x2, y2 in parts of the image: large and small, wide and tall, and two that overlap
    (0.02, 0.05, 0.98, 0.95),
    (0.10, 0.10, 0.50, 0.60),
    (0.45, 0.40, 0.90, 0.90),
    (0.50, 0.45, 0.95, 0.90),
    (0.55, 0.15, 0.95, 0.35),
    (0.10, 0.60, 0.30, 0.85),
)


@dataclass(frozen=True)
class Rehearsal:
    """What a training step and a prediction gave.

    Attributes:
        losses: Every loss by name, and their sum as 'loss'.
        without_gradient: Names of the backbone's parameters that require a gradient and got none.
        detections: Objects found in one image or in all frames of one video; None where a model that
            segments everything tells no objects apart.
    """

    losses: dict[str, float]
    without_gradient: tuple[str, ...]
    detections: int | None


def build_untrained(cfg: Config) -> nn.Module:
    """The detector that the config trains, with initial weights, few proposals, and BN for MMSyncBN.

    Of semi-supervised wrappers and of trackers that learn nothing themselves it is their detector. What its
    constructor raises is passed on.
    """
    cfg = without_pretrained(cfg)
    for _, node in dicts_of(cfg._cfg_dict):
        if 'max_per_img' in node and 'nms' in node:  # without, it is the number of queries
            node['max_per_img'] = min(node['max_per_img'], OBJECTS)
        if 'pos_fraction' in node:
            node['num'] = min(node['num'], SAMPLES)
        if 'clip_border' in node:  # an untrained model finds boxes off the image, where no mask can be pasted
            node['clip_border'] = True
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    wrapped = 'detector' in cfg.model and 'track_head' not in cfg.model
    model = MODELS.build(alone(cfg.model.detector if wrapped else cfg.model))
    init_weights(model)
    return model


def rehearse(model: nn.Module, shape: tuple[int, int] = (128, 160), images: int = 2) -> Rehearsal:
    """Run losses, their gradients and a prediction of a detector from `build_untrained`.

    The model keeps its weights, but neither the running averages of its norms nor its gradients. Global
    random numbers and MMEngine's record of a running training stay as they were.

    Args:
        model: A detector, or a tracker with a head that is trained.
        shape: Height and width of the images in pixels, for models that do not fix the size themselves.
        images: How many, or videos, the losses are of; the prediction is of one.

    Raises:
        FloatingPointError: A loss is not finite.
    """
    return Rehearsal(*train_once(model, shape, images), predict_once(model, shape))


def train_once(
    model: nn.Module, shape: tuple[int, int] = (128, 160), images: int = 2
) -> tuple[dict[str, float], tuple[str, ...]]:
    """The first half of `rehearse`: the losses, and which of the backbone's parameters get no gradient."""
    with _apart():
        model.train()
        model.zero_grad()
        batch = _batch(model, _shape(model, shape), images, training=True)
        loss, losses = model.parse_losses(model(**batch, mode='loss'))
        losses = {name: value.item() for name, value in losses.items() if 'loss' in name}  # no accuracies
        if not all(math.isfinite(value) for value in losses.values()):
            raise FloatingPointError(f'a loss is not finite: {losses}')
        loss.backward()
    backbone = getattr(model, 'detector', model).backbone
    parameters = backbone.named_parameters()
    return losses, tuple(name for name, p in parameters if p.requires_grad and p.grad is None)


def predict_once(model: nn.Module, shape: tuple[int, int] = (128, 160)) -> int | None:
    """The second half of `rehearse`: how many objects are found in one image or video."""
    with _apart(), torch.no_grad():
        model.eval()
        (result,) = model(**_batch(model, _shape(model, shape), 1, training=False), mode='predict')
    return _detections(result)


@contextmanager
def _apart() -> Iterator[None]:
    """Random numbers, and a training that has just begun, for heads that ask MMEngine how far it is.

    It tells them of the run that was made last, so that there must be no other.
    """
    with torch.random.fork_rng(devices=[]), patch.dict(MessageHub._instance_dict, clear=True):
        torch.manual_seed(0)
        MessageHub.get_instance('rehearsal').update_info_dict(dict(iter=0, epoch=0))
        yield


def _shape(model: nn.Module, shape: tuple[int, int]) -> tuple[int, int]:
    """The shape, or another that a model insists on."""
    for module in model.modules():
        size = getattr(getattr(module, 'prior_generator', None), 'input_size', None)
        if size:  # SSD's anchors, hence its number of levels, are made for one size
            return size, size
    if getattr(model, 'as_two_stage', False):  # queries are chosen among positions, most of them at stride 8
        scale = math.ceil(8 * math.sqrt(model.num_queries / (shape[0] * shape[1])))
        return scale * shape[0], scale * shape[1]
    return shape


def _batch(model: nn.Module, shape: tuple[int, int], images: int, training: bool) -> dict[str, Any]:
    """Images or videos with their truth, as the data preprocessor hands them to the model."""
    preprocessor = model.data_preprocessor
    if not isinstance(preprocessor, ImgDataPreprocessor):  # a tracker's detector leaves it to the tracker
        preprocessor = DetDataPreprocessor(pad_size_divisor=32)
    if isinstance(preprocessor, TrackDataPreprocessor):
        size: tuple[int, ...] = (FRAMES, 3, *shape)
        samples = [_video(model, shape) for _ in range(images)]
    else:
        size = (3, *shape)
        samples = [_sample(model, shape) for _ in range(images)]
    inputs = [torch.randint(256, size, dtype=torch.uint8) for _ in range(images)]
    # Batch augmentations pad to 1024 pixels or resize: nothing that a backbone notices, but slow.
    with patch.object(preprocessor, 'batch_augments', None):
        return preprocessor(dict(inputs=inputs, data_samples=samples), training)


def _video(model: nn.Module, shape: tuple[int, int]) -> TrackDataSample:
    video = TrackDataSample(metainfo=dict(key_frames_inds=[0], ref_frames_inds=list(range(1, FRAMES))))
    video.video_data_samples = [_sample(model, shape, frame) for frame in range(FRAMES)]
    return video


def _sample(model: nn.Module, shape: tuple[int, int], frame: int = 0) -> DetDataSample:
    """The truth about an image, with whatever of semantic maps and proposals the model asks for."""
    height, width = shape
    size = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'), shape)
    border = (0, height, 0, width)  # of the image in the padded one, for CenterNet and CornerNet
    info = dict(scale_factor=(1.0, 1.0), flip=False, border=border, img_id=0, img_path='', frame_id=frame)
    sample = DetDataSample(metainfo=dict(size, **info))
    boxes = (torch.tensor(BOXES) * torch.tensor([width, height, width, height])).round()
    sample.gt_instances = InstanceData(
        bboxes=boxes,
        labels=torch.randint(_classes(model), (len(boxes),)),
        instances_ids=torch.arange(len(boxes)),
    )
    if any('mask' in name for name, _ in model.named_modules()):  # RTMDet fails when there are masks
        masks = np.zeros((len(boxes), *shape), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        sample.gt_instances.masks = BitmapMasks(masks, *shape)
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0, dtype=torch.long))
    stuff = _stuff(model)
    if stuff:
        left = (torch.arange(width) < width / 2).expand(1, *shape)
        sample.gt_sem_seg = PixelData(sem_seg=torch.where(left, stuff[0], stuff[-1]))
    if hasattr(model, 'roi_head') and not model.with_rpn:
        sample.proposals = InstanceData(bboxes=boxes + 2)
    return sample


def _classes(model: nn.Module) -> int:
    """How many classes of objects all the heads know; of an RPN's alone, one."""
    counts = [
        getattr(module, 'num_things_classes', getattr(module, 'num_classes', None))
        for name, module in model.named_modules()
        if 'head' in name and 'rpn' not in name
    ]
    return min((count for count in counts if count), default=1)


def _stuff(model: nn.Module) -> range | None:
    """The labels of a semantic map that are no objects, of models that learn one."""
    for module in model.modules():
        if isinstance(module, FusedSemanticHead):
            return range(module.num_classes)
        if getattr(module, 'num_stuff_classes', 0):
            return range(module.num_things_classes, module.num_things_classes + module.num_stuff_classes)
    return None


def _detections(result: DetDataSample | TrackDataSample) -> int | None:
    if isinstance(result, TrackDataSample):
        return sum(len(frame.pred_track_instances) for frame in result)
    return len(result.pred_instances) if 'pred_instances' in result else None
