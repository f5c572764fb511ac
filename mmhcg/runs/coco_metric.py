"""MMDetection's COCO metric with the twelve numbers that COCO itself defines."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric
from mmengine.config import ConfigDict

from mmhcg.registry import METRICS
from mmhcg.runs.config import class_name

# MMDetection's names of pycocotools' stats 0..11 -> what they are with 1, 10 and 100 detections an image
NAMES = {
    **{name: name for name in ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')},
    'AR@100': 'AR@1',
    'AR@300': 'AR@10',
    'AR@1000': 'AR@100',
    'AR_s@1000': 'AR_s@100',
    'AR_m@1000': 'AR_m@100',
    'AR_l@1000': 'AR_l@100',
}


@METRICS.register_module()
class CocoTwelve(CocoMetric):
    """CocoMetric with COCO's own limits of 1, 10 and 100 detections an image, and all twelve numbers.

    CocoMetric counts recall at 100, 300 and 1000, and gives up without a number where a detector found
    nothing at all, as one does after its first iterations; here that is an AP of 0.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, 'proposal_nums': (1, 10, 100), 'metric_items': list(NAMES)})

    def compute_metrics(self, results: list) -> dict[str, float]:
        """As CocoMetric, with the recalls under the names of what they are."""
        if self._coco_api is not None:
            self._coco_api.loadRes = partial(_load_results, self._coco_api)
        scores = super().compute_metrics(results)
        return {_rename(key): value for key, value in scores.items()}


def use_twelve_numbers(metrics: list[ConfigDict]) -> None:
    """Replace every CocoMetric that scores boxes or masks, unless it says itself which numbers it wants."""
    for metric in metrics:
        scored = metric.get('metric', 'bbox')
        scored = {scored} if isinstance(scored, str) else set(scored)
        chosen = 'proposal_nums' in metric or 'metric_items' in metric
        if class_name(metric) == 'CocoMetric' and scored <= {'bbox', 'segm'} and not chosen:
            metric.type = 'mmhcg.CocoTwelve'


def _rename(key: str) -> str:
    metric, _, name = key.partition('_')
    return f'{metric}_{NAMES.get(name, name)}'


def _load_results(ground_truth: COCO, results: list[dict]) -> COCO:
    """pycocotools' loadRes, which cannot take an empty list."""
    if results:
        return COCO.loadRes(ground_truth, results)
    empty = COCO()
    empty.dataset = {**ground_truth.dataset, 'annotations': []}
    empty.createIndex()
    return empty
