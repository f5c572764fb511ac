"""A stage of a trained backbone, from photographs to its maps."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmhcg.runs.config import alone, detector_of, init_weights, load_config
from mmhcg.runs.datasets import leaf_datasets
from mmhcg.runs.errors import UserError
from mmhcg.runs.preflight import check_backbone, check_checkpoint
from mmhcg.weights.fit import load_weights

RANDOM = 'none'  # stands for a checkpoint


class StageMaps(nn.Module):
    """From a photograph (H, W, 3), BGR, to the maps (C, h, w) of a stage of a config's backbone.

    The backbone sees the photograph as that config's test would show it: its order of colours, its mean and
    deviation; at its own size, and without padding.

    Args:
        config: Of a detector or a classifier.
        checkpoint: Weights of the whole model, or of the backbone alone; 'none' for random ones,
            the same every time.
        stage: From 1, as `frozen_stages` counts: the backbone's out_index + 1.
        side: Shorter side in pixels to which photographs are scaled first; None leaves them as they are.

    Raises:
        UserError, CheckpointError: config, weights or stage are not there, or do not fit each other.
    """

    def __init__(
        self, config: str | Path, checkpoint: str | Path, stage: int, side: int | None = None
    ) -> None:
        super().__init__()
        if stage < 1:
            raise UserError(f'--stage {stage}: stages are counted from 1')
        cfg = load_config(config)
        check_backbone(cfg)
        weights = 'random weights' if str(checkpoint) == RANDOM else Path(checkpoint).stem
        self.name, self.stage, self.side = f'{Path(config).stem} ({weights})', stage, side
        content = None if str(checkpoint) == RANDOM else check_checkpoint(str(checkpoint), fetch=True)
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        backbone = alone(detector_of(cfg).backbone)
        backbone.update(out_indices=(stage - 1,), init_cfg=None)
        for option in ('pretrained', 'frozen_stages'):  # the latter may be of stages that are not built
            backbone.pop(option, None)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                self.backbone = MODELS.build(backbone)
            except Exception as error:  # of any backbone
                raise UserError(
                    f'{config}: no stage {stage} (counted from 1) of its backbone can be built: {error}'
                ) from error
            init_weights(self.backbone)
        if content is not None:
            load_weights(checkpoint, content, self.backbone)
        norm = _preprocessor(cfg)
        swaps = any(norm.get(option) for option in ('bgr_to_rgb', 'rgb_to_bgr', 'to_rgb'))
        self.rgb = swaps != _data_are_rgb(cfg)
        for name, default in (('mean', 0.0), ('std', 1.0)):
            numbers = torch.tensor(norm.get(name) or [default], dtype=torch.float)
            self.register_buffer(name, numbers.view(-1, 1, 1))
        self.eval().requires_grad_(False).to(get_device())

    def forward(self, photo: np.ndarray) -> Tensor:
        if self.side:
            scale = self.side / min(photo.shape[:2])
            photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        photo = np.ascontiguousarray(photo[..., ::-1] if self.rgb else photo)
        image = torch.from_numpy(photo).to(self.mean.device).permute(2, 0, 1).float()
        return self.backbone(((image - self.mean) / self.std)[None])[0][0]


def _preprocessor(cfg: Config) -> dict:
    parts = (detector_of(cfg), cfg.model, cfg)
    return next(filter(None, (part.get('data_preprocessor') for part in parts)), {})


def _data_are_rgb(cfg: Config) -> bool:
    """Files are read as BGR; datasets whose pipelines read none, such as CIFAR's, hold RGB."""
    steps = [step for dataset in leaf_datasets(cfg, 'test') for step in dataset.get('pipeline') or []]
    return bool(steps) and not re.search(r'Load\w*Image', str(steps))
