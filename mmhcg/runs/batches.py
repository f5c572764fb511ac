"""Batches for backbones whose norms learn."""

from __future__ import annotations

from collections.abc import Iterator

from mmdet.datasets import AspectRatioBatchSampler
from torch.utils.data import Sampler

from mmhcg.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class FullBatchSampler(AspectRatioBatchSampler):
    """AspectRatioBatchSampler without the incomplete batch at the end of an epoch.

    HCGNet's gates normalise one number per image and channel over the batch: one image gives them nothing,
    and two nearly nothing. The parent's `drop_last` may drop a full batch too; then its `len` is wrong.
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = True) -> None:
        super().__init__(sampler, batch_size, drop_last=False)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch for batch in super().__iter__() if len(batch) == self.batch_size)

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size
