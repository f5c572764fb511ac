"""Torchvision's classifiers beside a classifier of mmpretrain, on the same data."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
import torchvision
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor

from mmhcg.runs import UserError
from mmhcg.runs.classification import num_classes
from mmhcg.runs.preflight import check_checkpoint


@MODELS.register_module()
class TorchvisionNet(BaseModule):
    """A network of torchvision's as a backbone that gives logits, a tuple of one (N, K)."""

    def __init__(self, name: str, num_classes: int, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.net = torchvision.models.get_model(name, weights=None, num_classes=num_classes)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.net(image),)


def put_in(cfg: Config, name: str) -> Config:
    """A classifier's config with torchvision's network in place of its own.

    Raises:
        UserError: torchvision has no classifier of that name, or the config is of no classifier.
    """
    if name not in torchvision.models.list_models(module=torchvision.models):
        known = f'a classifier of torchvision {torchvision.__version__}'
        raise UserError(f'{name} is neither a config file nor {known}, such as resnet50')
    classes = num_classes(cfg)
    if classes is None:
        raise UserError(f"{name}: a network of torchvision's needs a config whose model.head has num_classes")
    cfg = deepcopy(cfg)
    cfg.model = ConfigDict(
        type=cfg.model.type,
        data_preprocessor=cfg.model.get('data_preprocessor'),
        backbone=dict(type='TorchvisionNet', name=name, num_classes=classes),
        head=dict(type='ClsHead'),  # which takes the backbone's logits as they are
    )
    return cfg


def save_renamed(weights: str | Path, path: Path) -> None:
    """Write torchvision's weights to `path` under the names that they have in the model of `put_in`."""
    state = check_checkpoint(str(weights), fetch=True)
    renamed = {f'backbone.net.{name}': value for name, value in state.get('state_dict', state).items()}
    torch.save(dict(state_dict=renamed), path)
