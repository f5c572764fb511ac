"""What a checkpoint must hold besides weights and optimizer for a run to go on as if it had not stopped."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmhcg.registry import HOOKS
from mmhcg.runs.resumable import EpochLoop, ResumableLoader


@HOOKS.register_module()
class RunStateHook(Hook):
    """Saves the state of the random numbers and the place in the epoch, and takes both up on resuming.

    The random numbers are those of the first process; when resumed, the others start new ones.
    """

    priority = 'LOWEST'  # when all else is ready to go on

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._before_val: dict[str, Any] = {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add `run_state`: numbers, tuples and tensors, as `torch.load(weights_only=True)` wants them."""
        state = checkpoint['run_state'] = {'random': self._before_val or random_state()}
        loop = runner.train_loop
        if isinstance(loop, EpochLoop):
            counted = checkpoint['meta']['epoch'] > runner.epoch  # MMEngine saves at its end, then counts it
            state.update(batch=0 if counted else loop.batch, batches=len(loop.dataloader))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep what the checkpoint says until training begins."""
        self._loaded = {
            'validating': checkpoint.get('meta', {}).get('validating', False),
            **checkpoint.get('run_state', {}),
        }

    def before_train(self, runner: Runner) -> None:
        """Go on from there, unless only weights were loaded."""
        state, self._loaded = self._loaded, {}
        if not runner.iter:
            return
        if 'random' in state:
            resume_random_state(state['random'], runner)
        if isinstance(runner.train_dataloader, ResumableLoader):
            runner.train_dataloader.seen = _seen(state, runner)
        if state.get('validating') and runner.val_loop is not None:
            runner.val_loop.run()

    def before_val(self, runner: Runner) -> None:
        """Note the random numbers: a resumed run does not validate again, and must have the same."""
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        """Take them up."""
        set_random_state(self._before_val)
        self._before_val = {}


def _seen(state: dict[str, Any], runner: Runner) -> int:
    """How many batches the loader has to pass over."""
    if type(runner.train_loop) is IterBasedTrainLoop:  # heirs may not ask for what was seen
        return runner.iter
    batches = len(runner.train_dataloader)
    if state.get('batch') and state['batches'] != batches:
        runner.logger.warning(
            f'epochs have {batches} batches now and had {state["batches"]}: restarting this epoch'
        )
        return 0
    return state.get('batch', 0)


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and PyTorch's random numbers, on this process's GPU as well."""
    name, keys, *rest = np.random.get_state()
    return {
        'python': random.getstate(),
        'numpy': (name, keys.tolist(), *rest),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Go on with the random numbers where `random_state` was called."""
    random.setstate(state['python'])
    np.random.set_state(state['numpy'])
    torch.set_rng_state(state['torch'].cpu())  # a checkpoint is loaded to the GPU
    if state['cuda'] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def resume_random_state(state: dict[str, Any], runner: Runner) -> None:
    """In the first process, `state`; in others new numbers, which no two of them share."""
    if runner.rank == 0:
        set_random_state(state)
        return
    seed = (runner.seed + runner.rank + runner.world_size * runner.iter) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
