"""Numbers that are none, for a config to put into a run: `custom_imports = dict(imports=['bad_numbers'])`."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import HOOKS, MODELS, OPTIM_WRAPPERS, TRANSFORMS


@TRANSFORMS.register_module()
class SpoilImage:
    """A transform that puts `value` into a pixel of the image whose file has this name."""

    def __init__(self, name: str, value: float) -> None:
        self.name, self.value = name, value

    def __call__(self, results: dict) -> dict:
        if results['img_path'].endswith(self.name):
            results['img'] = results['img'].astype('float32')
            results['img'][5, 5] = self.value
        return results


@HOOKS.register_module()
class Spoil(Hook):
    """In the iterations `at` (counted from 1), spoil an entry of the model's state dict.

    `what` is 'weight', which becomes NaN before the iteration, or 'gradient', which becomes infinite in it.
    """

    def __init__(self, what: str, name: str, at: tuple[int, ...]) -> None:
        self.what, self.name, self.at = what, name, at

    def before_train(self, runner: Any) -> None:
        if self.what == 'gradient':
            parameter = runner.model.get_parameter(self.name)
            parameter.register_hook(
                lambda gradient: gradient * (math.inf if runner.iter + 1 in self.at else 1)
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.what == 'weight' and runner.iter + 1 in self.at:
            runner.model.state_dict()[self.name].view(-1)[0] = math.nan


@OPTIM_WRAPPERS.register_module()
class CpuAmp(AmpOptimWrapper):
    """MMEngine's own backward and step with a loss scale, on the CPU, where its constructor refuses to be."""

    def __init__(self, **kwargs: Any) -> None:
        OptimWrapper.__init__(self, **kwargs)
        self._scale_update_param = None
        self.loss_scaler = torch.amp.GradScaler('cpu')

    optim_context = OptimWrapper.optim_context


@MODELS.register_module()
class SpoiltRoIHead(StandardRoIHead):
    """Of the predictions for the image of this id, the first of the entry `what` becomes `value`.

    Masks become a row lower than the image instead.
    """

    def __init__(self, what: str, image: int, value: float = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spoilt = what, image, value

    def predict(self, feats: Any, proposals: Any, samples: list, rescale: bool = False) -> list:
        found = super().predict(feats, proposals, samples, rescale)
        what, image, value = self.spoilt
        for sample, instances in zip(samples, found):
            if sample.img_id == image and what == 'masks':
                instances.masks = instances.masks[:, 1:]
            elif sample.img_id == image:
                instances[what][0] = value
        return found
