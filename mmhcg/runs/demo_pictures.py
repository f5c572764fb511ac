"""Held-out images with ground truth on the left and detections on the right."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.datasets.api_wrappers import COCO
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

ZOOM = 3  # a picture of 96 pixels has no room for labels
MIN_SCORE = 0.5
COLUMNS = 2  # of the overview
MARGIN, HEADER = 12, 34  # pixels
PALETTE = [(255, 190, 30), (60, 200, 255), (255, 90, 200), (120, 230, 90)]  # RGB, reads on light and dark


def draw_pictures(predictions: list[dict[str, Any]], data: Path, out: Path, count: int) -> None:
    """Draw the first `count` val images of three or more objects into `out`, and all on one `overview.png`.

    `predictions` are those that mmdet's DumpDetResults writes, `data` is a folder in COCO's layout.
    """
    coco = COCO(str(data / 'annotations' / 'instances_val2017.json'))
    classes = tuple(coco.cats[key]['name'] for key in sorted(coco.cats))
    visualizer = DetLocalVisualizer(name='demo_pictures', line_width=2, alpha=0.45)
    visualizer.dataset_meta = dict(classes=classes, palette=PALETTE[: len(classes)])
    of_image = {prediction['img_id']: prediction['pred_instances'] for prediction in predictions}
    full = [key for key in sorted(of_image) if len(coco.get_ann_ids(img_ids=[key], iscrowd=False)) >= 3]
    out.mkdir(parents=True, exist_ok=True)
    pairs = []
    for key in (full or sorted(of_image))[:count]:
        name = coco.imgs[key]['file_name']
        image = mmcv.imread(str(data / 'val2017' / name), channel_order='rgb')
        image = cv2.resize(image, None, fx=ZOOM, fy=ZOOM, interpolation=cv2.INTER_CUBIC)
        sample = DetDataSample(gt_instances=_truth(coco, key), pred_instances=_zoomed(of_image[key]))
        with warnings.catch_warnings():
            # MMEngine warns of every box and outline that touches the border, as those of cut-off shapes do.
            warnings.filterwarnings('ignore', message='.*out of bounds')
            visualizer.add_datasample(name, image, sample, pred_score_thr=MIN_SCORE, out_file=str(out / name))
        pairs.append(mmcv.imread(str(out / name)))
    mmcv.imwrite(_overview(pairs), str(out / 'overview.png'))


def _truth(coco: COCO, image_id: int) -> InstanceData:
    """What is annotated, crowds left out: detectors neither have to find them nor are blamed if they do."""
    annotations = coco.load_anns(coco.get_ann_ids(img_ids=[image_id], iscrowd=False))
    labels = sorted(coco.cats)
    boxes = np.array([annotation['bbox'] for annotation in annotations], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    masks = [coco.annToMask(annotation) for annotation in annotations]
    return _instances(boxes, [labels.index(annotation['category_id']) for annotation in annotations], masks)


def _zoomed(prediction: dict[str, Any]) -> InstanceData:
    masks = [coco_mask.decode(mask) for mask in prediction['masks']]
    instances = _instances(prediction['bboxes'].numpy(), prediction['labels'], masks)
    instances.scores = torch.as_tensor(prediction['scores'])
    return instances


def _instances(boxes: np.ndarray, labels: Any, masks: list[np.ndarray]) -> InstanceData:
    """Boxes (n, 4), x1 y1 x2 y2, and n masks (H, W), enlarged."""
    large = [np.kron(mask, np.ones((ZOOM, ZOOM), np.uint8)) for mask in masks]
    return InstanceData(
        bboxes=torch.as_tensor(boxes * ZOOM),
        labels=torch.as_tensor(labels, dtype=torch.long),
        masks=torch.as_tensor(np.array(large, bool)) if large else torch.zeros((0, 1, 1), dtype=torch.bool),
    )


def _overview(pairs: list[np.ndarray]) -> np.ndarray:
    """All pictures (H, 2 W, 3) on one white sheet, with a line of header over each column of pairs."""
    height, width = pairs[0].shape[:2]
    columns = min(COLUMNS, len(pairs))
    rows = -(-len(pairs) // columns)
    sheet = np.full(
        (HEADER + rows * (height + MARGIN), columns * (width + MARGIN) + MARGIN, 3), 255, np.uint8
    )
    for number, pair in enumerate(pairs):
        row, column = divmod(number, columns)
        top, left = HEADER + row * (height + MARGIN), MARGIN + column * (width + MARGIN)
        sheet[top : top + height, left : left + width] = pair
        if row == 0:
            for text, offset in (('ground truth', 0), (f'detections, score >= {MIN_SCORE}', width // 2)):
                place = (left + offset + 2, HEADER - 12)
                cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (40, 40, 40), 1, cv2.LINE_AA)
    return sheet
