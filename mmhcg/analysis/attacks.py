"""Attacks while MMEngine tests: pixels move to where the loss grows, and the model sees the result."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from foolbox import PyTorchModel
from foolbox.attacks import LinfFastGradientAttack, LinfProjectedGradientDescentAttack
from mmdet.evaluation import CocoMetric
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

WHITE = 255  # the largest value of a pixel


class _ByLoss:
    """For foolbox's attacks: the model that they get answers with its loss, not with logits."""

    run: Callable[..., Tensor]

    def get_loss_fn(self, model: PyTorchModel, labels: Any) -> PyTorchModel:
        return model


class FGSM(_ByLoss, LinfFastGradientAttack):
    """One step of the size of epsilon along the sign of the gradient (Goodfellow et al., 2015)."""


class PGD(_ByLoss, LinfProjectedGradientDescentAttack):
    """40 steps of epsilon / 30 from a random start, held within epsilon (Madry et al., 2018)."""


ATTACKS = {'fgsm': FGSM, 'pgd': PGD}


@HOOKS.register_module()
class AttackHook(Hook):
    """Have a test score the model under attack, whether it is a classifier or a detector.

    The attack knows the ground truth and the weights. It moves every pixel, not those of the padding, by at
    most `eps` and keeps it between black and white; normalisation is a part of the attacked model. The loss
    is the cross-entropy of a classifier's logits, or the sum of the losses that a detector learns from.

    Args:
        attack: 'fgsm' or 'pgd'.
        eps: Largest change of a pixel whose values go from 0 to 1; 0 leaves every test as it is.
    """

    def __init__(self, attack: str, eps: float) -> None:
        self.attack = ATTACKS[attack]()
        self.eps = eps

    def before_test(self, runner: Runner) -> None:
        """Put the attack between data and model; score the images that the dataset holds, no others."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.requires_grad_(False)  # the attack wants the gradient of pixels alone
        model.test_step = partial(self._test_step, model)
        dataset = runner.test_loop.dataloader.dataset
        for metric in runner.test_loop.evaluator.metrics:
            if isinstance(metric, CocoMetric):  # else what `indices` cut off counts as not found
                metric.img_ids = [dataset.get_data_info(index)['img_id'] for index in range(len(dataset))]

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        """Add to the scores how many images they are of."""
        metrics['images'] = len(runner.test_loop.dataloader.dataset)

    def _test_step(self, model: nn.Module, data: dict[str, Any]) -> list:
        """The model's `test_step`, on pixels that were attacked."""
        pixels, samples, normalise = _pixels(model.data_preprocessor, data)
        if self.eps:
            loss = _Loss(lambda pixels: _loss(model, normalise(pixels), samples))
            attacked = PyTorchModel(loss, bounds=(0, WHITE), device=pixels.device)
            unused = torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
            pixels = self.attack.run(attacked, pixels, unused, epsilon=self.eps * WHITE)
        return model(normalise(pixels), samples, mode='predict')


class _Loss(nn.Module):
    """A function as foolbox wants it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.forward = function
        self.eval()


def _pixels(preprocessor: nn.Module, data: dict[str, Any]) -> tuple[Tensor, list, Callable[[Tensor], Tensor]]:
    """Images (N, 3, H, W) from 0 to 255 in the model's order of channels, their samples, and what normalises.

    The latter gives the bits that the preprocessor would have, and gives padding no gradient.
    """
    sizes = [image.shape[-2:] for image in data['inputs']]
    normalised = preprocessor._enable_normalize
    with patch.multiple(preprocessor, _enable_normalize=False, batch_augments=None):
        batch = preprocessor(data, training=True)  # which pads masks, too
    pixels, padding = batch['inputs'], torch.ones_like(batch['inputs'][:, :1], dtype=torch.bool)
    for image, (height, width) in zip(padding, sizes):
        image[:, :height, :width] = False

    def normalise(pixels: Tensor) -> Tensor:
        image = (pixels - preprocessor.mean) / preprocessor.std if normalised else pixels
        return image.masked_fill(padding, preprocessor.pad_value)

    return pixels.masked_fill(padding, 0), batch['data_samples'], normalise


def _loss(model: nn.Module, image: Tensor, samples: list) -> Tensor:
    if 'gt_label' in samples[0]:
        labels = torch.cat([sample.gt_label for sample in samples])
        return F.cross_entropy(model(image, mode='tensor'), labels, reduction='sum')
    training = {module: module.training for module in model.modules()}
    try:
        _train_but_leaves(model)
        return model.parse_losses(model(image, deepcopy(samples), mode='loss'))[0]
    finally:
        for module, mode in training.items():
            module.training = mode


def _train_but_leaves(model: nn.Module) -> None:
    """Some detectors have losses in training mode alone, but norms and dropout shall be as in the test."""
    model.train()
    for module in model.modules():
        if not any(module.children()) or isinstance(module, nn.MultiheadAttention):
            module.eval()
