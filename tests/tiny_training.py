"""The smallest training with all of MMEngine's training state; `tiny_training.py WORK_DIR`: two epochs.

`data/pytorch_2_1.pth` is its epoch_2.pth, written with PyTorch 2.1.2 and NumPy 1.26.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import Tensor, nn

from mmhcg import get_config
from mmhcg.runs.safe_runner import SafeRunner


class TinyModel(BaseModel):
    """One layer and a norm, with random numbers in the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 2), nn.BatchNorm1d(2)

    def forward(self, *x: Tensor, mode: str) -> dict[str, Tensor]:
        return {'loss': self.norm(self.layer(torch.stack(x) + torch.rand(2))).pow(4).mean()}


def tiny_runner(work_dir: Path, epochs: int, resume: Path | None = None) -> SafeRunner:
    """Four samples, two to a batch."""
    samples = dict(dataset=torch.arange(8.0).reshape(4, 2), batch_size=2, num_workers=0)
    schedules = [
        dict(type='MultiStepLR', milestones=[1]),
        dict(type='OneCycleLR', eta_max=0.1, total_steps=30, by_epoch=False),
    ]
    return SafeRunner(
        model=TinyModel(),
        work_dir=str(work_dir),
        train_dataloader=dict(sampler=dict(type='DefaultSampler', shuffle=True), **samples),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=schedules,
        randomness=dict(seed=1),
        load_from=resume and str(resume),
        resume=resume is not None,
        cfg=Config(dict(safe_hooks=get_config('_base_/safe_run').safe_hooks)),
    )


if __name__ == '__main__':
    tiny_runner(Path(sys.argv[1]), epochs=2).train()
