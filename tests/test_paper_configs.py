"""The published experiment: its recipe, value by value, and MMDetection 1's boxes and masks."""

from __future__ import annotations

import pickle
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from compare_configs import differences, load
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from tiny_run import read_scalars, write_config, write_data

import mmhcg.runs  # also provides mmcv._ext

# isort: split
from mmcv.ops import batched_nms
from mmdet.models import FCNMaskHead, MaskRCNN, SingleRoIExtractor
from mmdet.models.task_modules import LegacyDeltaXYWHBBoxCoder
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks

from mmhcg.legacy import LegacyBoxCoder, LegacyFCNMaskHead, LegacyMaskRCNN, LegacyRoIExtractor

PAPER = {
    'r50': 'mask_rcnn_r50_fpn_1x_coco_paper.py',
    'hcgnet_b': 'mask_rcnn_hcgnet_b_fpn_1x_coco_paper.py',
}
TODAY = {'r50': 'mask_rcnn_r50_fpn_1x_coco.py', 'hcgnet_b': 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'}
DEVICES = ['cpu', *['cuda'] * torch.cuda.is_available()]

# Yang et al., AAAI 2020, arXiv 1908.09699, experiments on MS-COCO, and the authors' config for MMDetection 1
RECIPE = {
    'auto_scale_lr.enable': False,
    'auto_scale_lr.base_batch_size': 4,
    'train_dataloader.batch_size': 2,
    'train_dataloader.batch_sampler.type': 'AspectRatioBatchSampler',
    'train_dataloader.dataset.filter_cfg': dict(filter_empty_gt=True, min_size=32),
    'val_dataloader.batch_size': 1,
    'optim_wrapper.type': 'OptimWrapper',
    'optim_wrapper.optimizer': dict(type='SGD', lr=0.02 * 4 / 16, momentum=0.9, weight_decay=1e-4),
    'optim_wrapper.clip_grad': dict(max_norm=35, norm_type=2),
    'param_scheduler.0': dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end=500),
    'param_scheduler.1.type': 'MultiStepLR',
    'param_scheduler.1.by_epoch': True,
    'param_scheduler.1.milestones': [8, 11],
    'param_scheduler.1.gamma': 0.1,
    'train_cfg.max_epochs': 12,
    'train_dataloader.dataset.pipeline.2': dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    'train_dataloader.dataset.pipeline.3': dict(type='RandomFlip', prob=0.5),
    'test_dataloader.dataset.pipeline.1': dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    'model.type': 'mmhcg.legacy.LegacyMaskRCNN',
    'model.data_preprocessor.pad_size_divisor': 32,
    'model.data_preprocessor.mean': [123.675, 116.28, 103.53],
    'model.data_preprocessor.std': [58.395, 57.12, 57.375],
    'model.data_preprocessor.bgr_to_rgb': True,
    'model.backbone.frozen_stages': 1,
    'model.backbone.norm_eval': True,
    'model.neck.out_channels': 256,
    'model.neck.num_outs': 5,
    'model.rpn_head.anchor_generator': dict(
        type='LegacyAnchorGenerator',
        center_offset=0.5,
        scales=[8],
        ratios=[0.5, 1.0, 2.0],
        strides=[4, 8, 16, 32, 64],
    ),
    'model.rpn_head.bbox_coder.type': 'mmhcg.legacy.LegacyBoxCoder',
    'model.rpn_head.loss_bbox': dict(type='SmoothL1Loss', beta=1 / 9, loss_weight=1.0),
    'model.roi_head.bbox_head.bbox_coder.type': 'mmhcg.legacy.LegacyBoxCoder',
    'model.roi_head.bbox_head.bbox_coder.target_stds': [0.1, 0.1, 0.2, 0.2],
    'model.roi_head.bbox_head.loss_bbox': dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
    'model.roi_head.bbox_roi_extractor.type': 'mmhcg.legacy.LegacyRoIExtractor',
    'model.roi_head.bbox_roi_extractor.roi_layer': dict(
        type='RoIAlign', output_size=7, sampling_ratio=2, aligned=False
    ),
    'model.roi_head.mask_roi_extractor.type': 'mmhcg.legacy.LegacyRoIExtractor',
    'model.roi_head.mask_roi_extractor.roi_layer': dict(
        type='RoIAlign', output_size=14, sampling_ratio=2, aligned=False
    ),
    'model.roi_head.mask_head.type': 'mmhcg.legacy.LegacyFCNMaskHead',
    'model.train_cfg.rpn.allowed_border': 0,
    'model.train_cfg.rpn.assigner.pos_iou_thr': 0.7,
    'model.train_cfg.rpn.assigner.neg_iou_thr': 0.3,
    'model.train_cfg.rpn.assigner.min_pos_iou': 0.3,
    'model.train_cfg.rpn.assigner.match_low_quality': True,
    'model.train_cfg.rpn.sampler.num': 256,
    'model.train_cfg.rpn.sampler.pos_fraction': 0.5,
    'model.train_cfg.rpn_proposal': dict(
        nms_pre=2000, max_per_img=2000, nms=dict(type='nms', iou_threshold=0.7, offset=1), min_bbox_size=-1
    ),
    'model.train_cfg.rcnn.assigner.pos_iou_thr': 0.5,
    'model.train_cfg.rcnn.assigner.neg_iou_thr': 0.5,
    'model.train_cfg.rcnn.assigner.min_pos_iou': 0.5,
    'model.train_cfg.rcnn.assigner.match_low_quality': True,
    'model.train_cfg.rcnn.sampler.num': 512,
    'model.train_cfg.rcnn.sampler.pos_fraction': 0.25,
    'model.train_cfg.rcnn.mask_size': 28,
    'model.test_cfg.rpn': dict(
        nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7, offset=1), min_bbox_size=-1
    ),
    'model.test_cfg.rcnn': dict(
        score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5, offset=1),
        max_per_img=100,
        mask_thr_binary=0.5,
    ),
}


def entry(config: Any, path: str) -> Any:
    """What a dotted path leads to; numbers count list items."""
    step = lambda node, key: node[int(key)] if isinstance(node, list) else node[key]  # noqa: E731
    return reduce(step, path.split('.'), config)


@pytest.mark.parametrize('name', PAPER)
def test_recipe_is_that_of_the_authors(name):
    config = load(PAPER[name])
    found = {path: entry(config, path) for path in RECIPE}
    assert found == RECIPE


def test_the_two_differ_in_backbone_and_neck_inputs_only():
    changed = differences(load(PAPER['hcgnet_b']), load(PAPER['r50']))
    assert changed == {'model.backbone', 'model.neck.in_channels'}


@pytest.mark.parametrize('name', PAPER)
def test_network_is_that_of_the_config_for_today(name):
    paper, today = load(PAPER[name])['model'], load(TODAY[name])['model']
    assert (paper['backbone'], paper['neck']) == (today['backbone'], today['neck'])


@pytest.mark.parametrize(
    ('path', 'shift'), [('train_cfg.rpn_proposal', 1.7), ('test_cfg.rpn', 1.7), ('test_cfg.rcnn', 3.2)]
)
def test_nms_counts_the_last_pixel(path, shift):
    # The boxes' IoU is (9 - s) / (9 + s), with a pixel more (10 - s) / (10 + s): that is above the threshold.
    boxes = torch.tensor([[0, 0, 9, 9], [0, shift, 9, 9 + shift]])
    for name, kept in ((PAPER['r50'], [0]), (TODAY['r50'], [0, 1])):
        nms = entry(load(name)['model'], path)['nms']
        _, keep = batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.long), nms)
        assert keep.tolist() == kept


def random_boxes(count: int, seed: int, size: float = 100) -> torch.Tensor:
    corners = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed)) * size
    return torch.cat((corners[:, :2].minimum(corners[:, 2:]), corners[:, :2].maximum(corners[:, 2:])), 1)


def test_box_coder_inverts_its_targets():
    anchors, boxes = random_boxes(50, 0), random_boxes(50, 1)
    for coder, excess in ((LegacyBoxCoder(), 0), (LegacyDeltaXYWHBBoxCoder(), 0.5)):
        decoded = coder.decode(anchors, coder.encode(anchors, boxes))
        wider = boxes + torch.tensor([-excess, -excess, excess, excess])
        torch.testing.assert_close(decoded, wider, rtol=0, atol=1e-3)


def test_box_coder_keeps_boxes_on_pixels_of_the_image():
    boxes = torch.tensor([[-5.0, -7, 200, 100], [90, 60, 95, 70], [3, 4, 5, 6]])
    decoded = LegacyBoxCoder().decode(boxes, torch.zeros(3, 4), max_shape=(50, 80))
    assert decoded.tolist() == [[0, 0, 79, 49], [79, 49, 79, 49], [3, 4, 5, 6]]


def extract(cls: type, maps: list[torch.Tensor], roi: list[float]) -> torch.Tensor:
    """What an extractor of this class makes of one RoI (1, C, 7, 7)."""
    roi_layer = dict(type='RoIAlign', output_size=7, sampling_ratio=2, aligned=False)
    strides = [4, 8, 16, 32][: len(maps)]
    extractor = cls(roi_layer=roi_layer, out_channels=1, featmap_strides=strides)
    return extractor(tuple(maps), torch.tensor([[0, *roi]], dtype=torch.float32))


def test_roi_pooling_reaches_to_the_end_of_the_last_pixel():
    ramp = torch.arange(32.0).repeat(1, 1, 32, 1)  # a map whose values are the columns
    pooled = extract(LegacyRoIExtractor, [ramp], [8, 8, 39, 39])
    expected = 2 + (torch.arange(7) + 0.5) * 8 / 7  # 32 pixels from the 8th are 8 cells from the 2nd
    torch.testing.assert_close(pooled[0, 0], expected.expand(7, 7), rtol=0, atol=1e-5)


def test_roi_level_counts_the_last_pixel():
    maps = [torch.full((1, 1, 64, 64), float(level)) for level in range(4)]
    for cls, level in ((LegacyRoIExtractor, 1), (SingleRoIExtractor, 0)):
        pooled = extract(cls, maps, [8, 8, 8 + 111, 8 + 111])  # 112 pixels: the second level begins here
        assert pooled.unique().tolist() == [level]


def sample_with(
    boxes: list[list[float]], field: str, scale: tuple[float, float] = (2.0, 1.5)
) -> DetDataSample:
    sample = DetDataSample(metainfo=dict(scale_factor=scale))
    setattr(sample, field, InstanceData(bboxes=torch.tensor(boxes).reshape(-1, 4)))
    return sample


def test_detector_learns_last_pixels(monkeypatch):
    seen = []
    monkeypatch.setattr(MaskRCNN, 'loss', lambda self, inputs, samples: seen.extend(samples) or {'loss': 1})
    # x from 10 to 30 and y from 20 to 40 in the original image: columns 10..29, rows 20..39
    given = [sample_with([[20.0, 30, 60, 60]], 'gt_instances'), sample_with([], 'gt_instances')]
    detector = LegacyMaskRCNN.__new__(LegacyMaskRCNN)
    assert detector.loss(torch.zeros(2, 3, 64, 64), given) == {'loss': 1}
    assert seen[0].gt_instances.bboxes.tolist() == [[20, 30, 2 * 29, 1.5 * 39]]
    assert seen[1].gt_instances.bboxes.shape == (0, 4)
    assert given[0].gt_instances.bboxes.tolist() == [[20, 30, 60, 60]]


@pytest.mark.parametrize(
    ('rescale', 'last', 'edge'),
    [(True, [10.0, 20, 29, 39], [10, 20, 30, 40]), (False, [20.0, 30, 58, 58.5], [20, 30, 60, 60])],
)
def test_detector_reports_edges(monkeypatch, rescale, last, edge):
    found = [sample_with([last], 'pred_instances'), sample_with([], 'pred_instances')]
    monkeypatch.setattr(MaskRCNN, 'predict', lambda self, inputs, samples, rescale: samples)
    detector = LegacyMaskRCNN.__new__(LegacyMaskRCNN)
    samples = detector.predict(torch.zeros(2, 3, 64, 64), found, rescale)
    assert samples[0].pred_instances.bboxes.tolist() == [edge]
    assert samples[1].pred_instances.bboxes.shape == (0, 4)


def paste(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    shape: tuple[int, int],
    scale: tuple[float, float] = (1.0, 1.0),
    rescale: bool = True,
    threshold: float = 0.5,
    cls: type = LegacyFCNMaskHead,
) -> InstanceData:
    """One image's results with masks, through the method that MMDetection calls."""
    agnostic = logits.shape[1] == 1
    head = cls(num_convs=0, in_channels=4, conv_out_channels=4, num_classes=3, class_agnostic=agnostic)
    results = InstanceData(bboxes=boxes.clone(), labels=labels, scores=torch.ones(len(boxes)).to(boxes))
    meta = dict(ori_shape=shape, scale_factor=scale)
    cfg = ConfigDict(mask_thr_binary=threshold)
    return head.predict_by_feat((logits,), [results], [meta], cfg, rescale=rescale)[0]


def plain_paste(soft: np.ndarray, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """MMDetection 1's soft mask (H, W) in the whole image, pixel by pixel; 0 outside the box."""
    image = np.zeros(shape)
    x1, y1, x2, y2 = (int(value) for value in box)
    width, height = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
    for row in range(height):
        for column in range(width):
            if not (0 <= y1 + row < shape[0] and 0 <= x1 + column < shape[1]):
                continue
            # where the pixel's centre lies between the centres of cells; outside of these, the last counts
            y = min(max((row + 0.5) * soft.shape[0] / height - 0.5, 0), soft.shape[0] - 1)
            x = min(max((column + 0.5) * soft.shape[1] / width - 0.5, 0), soft.shape[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, soft.shape[0] - 1), min(left + 1, soft.shape[1] - 1)
            upper = soft[top, left] * (1 - x + left) + soft[top, right] * (x - left)
            lower = soft[bottom, left] * (1 - x + left) + soft[bottom, right] * (x - left)
            image[y1 + row, x1 + column] = upper * (1 - y + top) + lower * (y - top)
    return image


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('classes', [1, 3])
@pytest.mark.parametrize(('rescale', 'shape'), [(True, (61, 83)), (False, (122, 141))])
def test_masks_are_pasted_as_in_version_1(rescale, shape, classes, device):
    # (122, 141) are the sides of 61 x 83 pixels, 2.0 and 1.7 times as long, the latter rounded.
    scale, generator = (1.7, 2.0), torch.Generator().manual_seed(0)
    logits = torch.randn(12, classes, 28, 28, generator=generator) * 2
    labels = torch.arange(12) % 3
    boxes = random_boxes(12, 2, size=130) - torch.tensor([9.0, 9, 9, 9])  # some reach out of the image
    original = (boxes / torch.tensor([*scale, *scale]) if rescale else boxes).numpy()
    pasted = paste(logits.to(device), boxes.to(device), labels.to(device), (61, 83), scale, rescale)
    assert pasted.masks.dtype == torch.bool
    assert pasted.masks.shape == (12, *shape)
    np.testing.assert_allclose(pasted.bboxes.cpu(), original, rtol=1e-6)
    for index, mask in enumerate(pasted.masks.cpu().numpy()):
        soft = logits[index, labels[index] if classes > 1 else 0].sigmoid().double().numpy()
        expected = plain_paste(soft, original[index], shape)
        clear = abs(expected - 0.5) > 1e-5  # the rest are matters of rounding
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(mask[clear], expected[clear] > 0.5)


def test_a_mask_of_two_by_two_on_four_pixels():
    # In each direction the corner's weights are 1, 3/4, 1/4, 0: products above 1/2 are in the first 2 x 2.
    logits = torch.tensor([[40.0, -40], [-40, -40]])[None, None]
    box = torch.tensor([[1.9, 2.2, 4.99, 5.0]])  # columns 1..4, rows 2..5
    expected = torch.zeros(7, 8, dtype=torch.bool)
    expected[2:4, 1:3] = True
    assert torch.equal(paste(logits, box, torch.tensor([0]), (7, 8)).masks[0], expected)


@pytest.mark.parametrize(
    ('box', 'rows', 'columns'),
    [
        ([1.9, 2.2, 4.99, 5.0], slice(2, 6), slice(1, 5)),
        ([0, 0, 7, 6], slice(0, 7), slice(0, 8)),
        ([7, 6, 7, 6], slice(6, 7), slice(7, 8)),
        ([3, 3, 2, 1], slice(3, 4), slice(3, 4)),
        ([-3, -2, 2, 1], slice(0, 2), slice(0, 3)),
        ([5, 4, 30, 20], slice(4, 7), slice(5, 8)),
        ([-9, 1, -4, 3], slice(0, 0), slice(0, 0)),
        ([2, 9, 5, 12], slice(0, 0), slice(0, 0)),
    ],
)
def test_boxes_at_and_beyond_the_border(box, rows, columns):
    full = torch.full((1, 1, 28, 28), 40.0)
    expected = torch.zeros(7, 8, dtype=torch.bool)
    expected[rows, columns] = True
    masks = paste(full, torch.tensor([box]).float(), torch.tensor([0]), (7, 8)).masks
    assert torch.equal(masks[0], expected)


@pytest.mark.parametrize('threshold', [0.5, -1])
@pytest.mark.parametrize('count', [0, 2])
def test_masks_are_of_the_same_kind_as_today_but_others(count, threshold):
    logits = torch.full((count, 3, 28, 28), 40.0)
    boxes, labels = torch.tensor([[3.8, 4.4, 9.8, 9.9]] * count).reshape(-1, 4), torch.zeros(count).long()
    ours, theirs = (
        paste(logits, boxes, labels, (7, 8), (2.0, 2.0), threshold=threshold, cls=cls)
        for cls in (LegacyFCNMaskHead, FCNMaskHead)
    )
    assert (ours.masks.dtype, ours.masks.shape) == (theirs.masks.dtype, theirs.masks.shape)
    assert torch.equal(ours.bboxes, theirs.bboxes)
    assert torch.equal(ours.masks, theirs.masks) == (count == 0)


def test_half_is_not_enough_for_a_pixel():
    logits, boxes = torch.zeros(1, 1, 28, 28), torch.tensor([[1.0, 1, 5, 5]])
    assert not paste(logits, boxes, torch.tensor([0]), (7, 8)).masks.any()


def test_mask_targets_include_the_last_pixel():
    sampled = SamplingResult.__new__(SamplingResult)
    sampled.pos_priors, sampled.pos_assigned_gt_inds = torch.tensor([[2.0, 1, 5, 4]]), torch.tensor([0])
    picture = np.zeros((1, 8, 8), np.uint8)
    picture[0, 1:5, 5] = 1  # the last of the box's columns
    truth = InstanceData(masks=BitmapMasks(picture, 8, 8))
    head = LegacyFCNMaskHead(num_convs=0, in_channels=4, conv_out_channels=4, num_classes=3)
    targets = head.get_targets([sampled], [truth], ConfigDict(mask_size=4))
    assert targets.tolist() == [[[0, 0, 0, 1]] * 4]


@pytest.mark.slow
def test_paper_config_trains_and_scores_masks(tmp_path):
    config, data = write_config(tmp_path, base=PAPER['hcgnet_b']), write_data(tmp_path)
    options = {'train_cfg.max_epochs': 1}
    runner = mmhcg.runs.train(
        config, tmp_path / 'wd', data_root=data, seed=0, no_pretrained=True, cfg_options=options
    )
    assert isinstance(runner.model, LegacyMaskRCNN)
    first = read_scalars(tmp_path / 'wd')[0]
    assert first['lr'] == pytest.approx(0.005 / 3)
    assert np.isfinite([first['loss'], first['grad_norm']]).all()
    out = tmp_path / 'out.pkl'
    scores = mmhcg.runs.test(
        config, tmp_path / 'wd/epoch_1.pth', data_root=data, work_dir=tmp_path / 'test', out=out
    )
    assert {'coco/bbox_mAP', 'coco/segm_mAP'} <= scores.keys()
    images = pickle.loads(out.read_bytes())
    assert len(images) == 4
    assert all(len(image['pred_instances']['masks']) > 0 for image in images)
