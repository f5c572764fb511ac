"""A hook that ends a run whose losses, gradients or weights are no numbers, before they are saved."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from glob import escape, glob
from typing import Any, NoReturn

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor
from torch.optim import Optimizer

from mmhcg.registry import HOOKS
from mmhcg.runs.errors import DivergedError
from mmhcg.weights.entries import tensors_of

SAVED = ('state_dict', 'ema_state_dict', 'optimizer')  # of a checkpoint, what training changes


@HOOKS.register_module()
class FiniteTraining(Hook):
    """End training where a loss, a gradient or what is to be saved is NaN or infinite.

    mmdet's CheckInvalidLossHook looks every 50 iterations and by an `assert`, which `python -O` leaves out:
    until it looks, NaN weights may be saved. This one looks in every iteration, after the log has been
    written and before a checkpoint is. It waits for no GPU: MMEngine's RuntimeInfoHook has just fetched every
    loss from it. The gradients' norm takes one pass over them.

    Mixed precision skips a step whose gradients are infinite, and halves its loss scale. That is its normal
    way to find one, so that only `max_skipped` such steps in a row mean that there is none.

    Raises, from within the run:
        DivergedError: It names the iteration, the losses and the images of the batch.
    """

    priority = 'LOW'  # after the log and EMAHook's averages, before CheckpointHook

    def __init__(self, max_skipped: int = 50) -> None:
        self.max_skipped = max_skipped
        self._skipped = 0
        self._norm: Tensor | None = None  # of the gradients of the last step; None where it was skipped

    def before_train(self, runner: Runner) -> None:
        """Have the gradients measured from now on. With several optimizers only losses and weights are."""
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if isinstance(optimizer, Optimizer):
            optimizer.register_step_pre_hook(self._measure)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at the losses and, where the weights were to be updated, at the gradients."""
        losses = {name: torch.as_tensor(v).item() for name, v in (outputs or {}).items() if 'loss' in name}
        wrong = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if wrong:
            parts = {name: value for name, value in wrong.items() if name != 'loss'} or wrong  # not the sum
            _stop(runner, ', '.join(f'{name} is {value}' for name, value in parts.items()), data_batch)
        if isinstance(getattr(runner.optim_wrapper, 'optimizer', None), Optimizer):
            self._check_gradients(runner, data_batch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save NaN or infinity, however it came about."""
        for name, tensor in tensors_of({key: checkpoint.get(key) for key in SAVED}):
            if not tensor.isfinite().all():
                _stop(runner, f'{name} holds NaN or infinity')

    def _measure(self, optimizer: Optimizer, *_: Any) -> None:
        """Keep the norm of all gradients, on their device; they stay as they are."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group['params'])
        self._norm = _total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    def _check_gradients(self, runner: Runner, data_batch: Any) -> None:
        if not runner.optim_wrapper.should_update():  # it accumulates gradients
            return
        norm, self._norm = self._norm, None
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        if norm is not None and math.isfinite(norm):
            self._skipped = 0
            return
        if scaler is None:
            if norm is not None:  # a model may not step in every iteration
                fault = 'the losses of this process are finite, but the norm of the gradients is'
                _stop(runner, f'{fault} {float(norm)}', data_batch)
            return
        self._skipped += 1
        if self._skipped >= self.max_skipped:
            fault = f'the gradients were not finite in {self._skipped} consecutive steps'
            _stop(
                runner,
                f'{fault}, all of which were skipped; the loss scale is down to {scaler.get_scale():.3g}',
                data_batch,
            )


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """The 2-norm of all of them together."""
    if hasattr(torch.nn.utils, 'get_total_norm'):  # since PyTorch 2.6
        return torch.nn.utils.get_total_norm(gradients)
    norms = [norm.to(gradients[0].device) for norm in torch._foreach_norm(gradients)] if gradients else []
    return torch.stack(norms).norm() if norms else torch.tensor(0.0)


def images_of(samples: Any) -> Iterator[str]:
    """What the images of a batch are called, for a message.

    Args:
        samples: Data samples, in lists or dicts however deep.
    """
    if isinstance(samples, (dict, list, tuple)):
        for sample in samples.values() if isinstance(samples, dict) else samples:
            yield from images_of(sample)
    elif hasattr(samples, 'get'):
        yield f'{samples.get("img_path", "an image without a path")} (id {samples.get("img_id", "unknown")})'


def _stop(runner: Runner, fault: str, data_batch: Any = None) -> NoReturn:
    """Raise DivergedError, and have the log file say why it ends here."""
    when, look = 'before a checkpoint was saved', ''
    if isinstance(data_batch, dict):
        when = f'in iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        images = ''.join(f'\n  {image}' for image in images_of(data_batch.get('data_samples')))
        look = f' The batch:{images}\nLook at these images and their annotations.'
    saved = glob(os.path.join(escape(runner.work_dir), '*.pth'))
    before = f'Earlier checkpoints in {runner.work_dir} are intact' if saved else 'There is no checkpoint'
    error = DivergedError(
        f'training diverged {when}: {fault}.{look}\nWhere the data is fine, lower '
        'optim_wrapper.optimizer.lr, or clip the gradients: optim_wrapper.clip_grad=dict(max_norm=35). '
        f'{before}'
    )
    logger = runner.logger
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):  # on the screen it comes as the exception
            handler.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, str(error), (), None))
    raise error
