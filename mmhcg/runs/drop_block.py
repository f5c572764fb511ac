"""A hook that lets DropBlock's probability grow within each warm restart of the learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmhcg.network.drop_block import DropBlock
from mmhcg.registry import HOOKS
from mmhcg.runs.errors import UserError


@HOOKS.register_module()
class DropBlockSchedule(Hook):
    """Raise the probability of every DropBlock from 0 in a period's first epoch to `end` in its last.

    It grows by the same step each epoch, and by the number of the epoch alone, so that a resumed run goes on
    where it was. After the last period it stays at `end`.

    Args:
        periods: Epochs of each restart, as of `CosineRestartLR`.
        end: Probability in the last epoch of each.
    """

    def __init__(self, periods: Sequence[int], end: float = 0.1) -> None:
        self.periods = tuple(periods)
        self.end = end

    def probability(self, epoch: int) -> float:
        """Of the epoch, counted from 0."""
        for length, stop in zip(self.periods, accumulate(self.periods)):
            if epoch < stop:
                return self.end * (epoch - stop + length) / max(length - 1, 1)
        return self.end

    def before_train(self, runner: Runner) -> None:
        """Raises UserError where there is nothing to schedule."""
        if not any(isinstance(module, DropBlock) for module in runner.model.modules()):
            raise UserError(
                'DropBlockSchedule finds no DropBlock in the model: set model.backbone.drop_block='
                'dict(block_size=2), or take the hook out of custom_hooks'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the probability for this epoch."""
        for module in runner.model.modules():
            if isinstance(module, DropBlock):
                module.probability = self.probability(runner.epoch)
