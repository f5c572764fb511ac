"""A hook that ends an evaluation whose AP would say something else than how good the detector is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor
from torch.nn import Module

from mmhcg.registry import HOOKS
from mmhcg.runs.errors import DivergedError, UserError
from mmhcg.runs.finite import images_of

NUMBERS = ('bboxes', 'scores', 'mask_scores')
SHOWN = 5  # images that a message lists


@HOOKS.register_module()
class CheckedPredictions(Hook):
    """Look at every prediction before it is scored, in validation and in testing, whatever the metric.

    pycocotools compares numbers, and each comparison with NaN is false: boxes of NaN match all objects, which
    makes an AP of 1.0. MMDetection compares, too: a score of NaN is above no threshold, so that such boxes
    are gone before anyone sees them. So NaN is looked for in what the heads put out as well.

    An image that nothing was predicted for counts as one in which nothing was found. Where the dataset holds
    it, or a whole file that is not the metric's, that is an error. Where the config cuts the dataset
    (`indices`, or `filter_cfg` without `test_mode`), somebody wants to look at a few images: there it is a
    warning, the last line before the scores.

    Raises, from within the run:
        DivergedError: A box or a score is NaN or infinite, or a head's output NaN; it names the images.
        UserError: Images were left out, or masks do not have the image's size.
    """

    priority = 'ABOVE_NORMAL'  # before anything is drawn

    def __init__(self) -> None:
        self._seen: set[Any] = set()  # ids of images, of this process
        self._nan: list[tuple[str, Tensor]] = []  # a head's name, and whether an output of it held NaN
        self._handles: list[Any] = []

    def before_val_epoch(self, runner: Runner) -> None:
        self._watch(runner.model)

    def before_test_epoch(self, runner: Runner) -> None:
        self._watch(runner.model)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        self._check(runner, runner.val_loop, batch_idx, outputs or ())

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        self._check(runner, runner.test_loop, batch_idx, outputs or ())

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._stop_watching()

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self._stop_watching()

    def _watch(self, model: Module) -> None:
        """Note NaN in what the heads put out from now on. Infinity may be meant there: it masks logits."""
        self._stop_watching()  # where an evaluation has failed before its end
        self._seen, self._nan = set(), []
        for name, module in model.named_modules():
            if type(module).__name__.endswith('Head'):
                self._handles.append(
                    module.register_forward_hook(
                        lambda _, __, output, name=name: self._nan.extend(
                            (name, tensor.isnan().any()) for tensor in _tensors(output)
                        )
                    )
                )

    def _stop_watching(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _check(self, runner: Runner, loop: BaseLoop, batch_idx: int, samples: Sequence) -> None:
        nan, self._nan = self._nan, []
        if nan and torch.stack([found for _, found in nan]).any():
            names = dict.fromkeys(name for name, found in nan if found)
            raise DivergedError(
                f'{", ".join(names)} put out NaN for {", ".join(images_of(list(samples)))}; no score of '
                'such boxes would say anything. Look at these images, or test without mixed precision'
            )
        for sample in samples:
            if not hasattr(sample, 'get'):  # of no detector
                continue
            for image in sample.get('video_data_samples', [sample]):  # trackers give a sample for each video
                _check_numbers(image)
                self._seen.add(image.get('img_id'))
        if batch_idx + 1 == len(loop.dataloader):
            seen, self._seen = set().union(*all_gather_object(self._seen)), set()
            _check_complete(runner, loop, seen)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)


def _check_numbers(sample: Any) -> None:
    """Of an image's predictions, boxes and scores must be numbers, and masks as large as the image."""
    found = sample.get('pred_instances')
    if found is None:
        return
    (image,) = images_of(sample)
    for name in NUMBERS:
        numbers = found.get(name)
        numbers = getattr(numbers, 'tensor', numbers)  # of mmdet's kinds of boxes
        if isinstance(numbers, Tensor) and not numbers.isfinite().all():
            wrong = int((~numbers.isfinite()).reshape(len(numbers), -1).any(1).sum())
            raise DivergedError(
                f'predictions for {image}: {wrong} of {len(numbers)} {name} are NaN or infinite, and would '
                'be scored as hits. Look at this image, or test without mixed precision'
            )
    masks, size = found.get('masks'), sample.get('ori_shape')
    if isinstance(masks, Tensor) and size and tuple(masks.shape) != (len(found), *size[:2]):
        raise UserError(
            f'predictions for {image}: masks of shape {tuple(masks.shape)} for {len(found)} boxes in an '
            f'image of {tuple(size[:2])} (height, width), none of which would count'
        )


def _check_complete(runner: Runner, loop: BaseLoop, seen: set) -> None:
    """Every image of a metric's annotation file must have got predictions."""
    for metric in loop.evaluator.metrics:
        truth = getattr(metric, '_coco_api', None) or getattr(metric, '_lvis_api', None)
        images = truth.imgs if truth else {}
        missing = [image for image in images if image not in seen]
        if not missing:
            continue
        names = ', '.join(f'{images[image].get("file_name")} (id {image})' for image in missing[:SHOWN])
        fault = (
            f'{type(metric).__name__}: predictions for only {len(images) - len(missing)} of the '
            f'{len(images)} images of its annotation file; the others count as if nothing '
            f'had been found: {names}' + (', ...' if len(missing) > SHOWN else '')
        )
        if not _is_cut(loop.dataloader.dataset):
            raise UserError(
                f'{fault}. Give the evaluator the ann_file of the dataset, and leave out no image of it '
                '(drop_last, a sampler)'
            )
        runner.logger.warning(f'{fault}. The config cuts the dataset (indices or filter_cfg)')


def _is_cut(dataset: Any) -> bool:
    """Whether the config has the dataset hold fewer images than its file."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    filtered = getattr(dataset, 'filter_cfg', None) and not getattr(dataset, 'test_mode', False)
    cut = getattr(dataset, '_indices', None) is not None or bool(filtered)
    return cut or any(_is_cut(part) for part in inner if part is not None)
