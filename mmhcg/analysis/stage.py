"""A stage of a trained backbone, from photographs to its maps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmhcg.analysis.rehearsal import init_weights
from mmhcg.runs.config import alone, detector_of, load_config
from mmhcg.runs.errors import UserError
from mmhcg.runs.preflight import check_backbone, check_checkpoint
from mmhcg.weights.fit import check_fit

RANDOM = 'none'  # stands for a checkpoint


class Stage(nn.Module):
    """A stage of a config's backbone: from a photograph (H, W, 3), BGR, to its map (C, h, w).

    Args:
        config: Of a detector or a classifier.
        checkpoint: Weights of the whole model, or of the backbone alone; 'none' for random ones,
            the same every time.
        stage: From 0.
        side: Shorter side in pixels to which photographs are scaled first; None leaves them as they are.

    Raises:
        UserError, CheckpointError: config, weights or stage are not there, or do not fit each other.
    """

    def __init__(
        self, config: str | Path, checkpoint: str | Path, stage: int, side: int | None = None
    ) -> None:
        super().__init__()
        cfg = load_config(config)
        check_backbone(cfg)
        weights = 'random weights' if str(checkpoint) == RANDOM else Path(checkpoint).stem
        self.name, self.stage, self.side = f'{Path(config).stem} ({weights})', stage, side
        content = None if str(checkpoint) == RANDOM else check_checkpoint(str(checkpoint))
        init_default_scope(cfg.get('default_scope', 'mmdet'))
        backbone = alone(detector_of(cfg).backbone)
        backbone.update(out_indices=(stage,), init_cfg=None)
        backbone.pop('pretrained', None)  # mmdet's older spelling
        with torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                self.backbone = MODELS.build(backbone)
            except Exception as error:  # of any backbone
                raise UserError(
                    f'{config}: no stage {stage} of its backbone can be built: {error}'
                ) from error
            init_weights(self.backbone)
        if content is not None:
            _load(self.backbone, checkpoint, content)
        norm = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
        self.rgb = bool(norm.get('bgr_to_rgb') or norm.get('to_rgb'))
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


def _load(backbone: nn.Module, path: str | Path, content: dict) -> None:
    state = content.get('state_dict', content)
    prefix = 'backbone.' if any(name.startswith('backbone.') for name in state) else ''
    check_fit(path, content, backbone, prefix or None)
    wanted = backbone.state_dict()
    state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    backbone.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
