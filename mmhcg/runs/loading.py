"""What a run is about to load must be the model's: MMEngine logs what does not fit, and goes on at random."""

from __future__ import annotations

import copy
import os
from typing import Any

from mmengine.config import Config
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.optim import Optimizer

from mmhcg.runs.errors import UserError
from mmhcg.weights.fit import check_fit, state_of

MOMENTA = ('momentum_buffer', 'exp_avg', 'exp_avg_sq')  # of SGD and Adam: as large as what they are for


def check_loading(cfg: Config, content: dict[str, Any], runner: Runner) -> None:
    """Check the content of `cfg.load_from` before `runner.train()` loads it.

    To resume, all of the model and the optimizer must be there. To start from, something of the model must:
    heads for other classes are left out on purpose.

    Raises:
        CheckpointError: Entries of the model are missing, or others are in their place.
        UserError: The optimizer's state is another optimizer's, or none of the file's names is the model's.
    """
    path = os.path.abspath(cfg.load_from)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    if cfg.resume:
        check_fit(path, content, model)
        _check_optimizer(path, content['optimizer'], runner)
    elif 'detector' not in cfg.model:  # wrappers have names of their own for what they wrap
        names, wanted = state_of(content), model.state_dict()
        if not names.keys() & wanted.keys():
            examples = f'{next(iter(names), None)!r} instead of {next(iter(wanted))!r}'
            raise UserError(f"checkpoint {path}: none of its names is the model's, e.g. {examples}")


def _check_optimizer(path: str, state: dict[str, Any], runner: Runner) -> None:
    """Load it into an optimizer as the run will have, and look at what became of it."""
    wrapper = runner.build_optim_wrapper(copy.deepcopy(runner.optim_wrapper))
    if not isinstance(getattr(wrapper, 'optimizer', None), Optimizer):  # several, for models in several parts
        return
    fault = None
    try:
        wrapper.load_state_dict(dict(state))
    except Exception as error:  # PyTorch looks at the number of groups and weights, and at little else
        fault = f'{type(error).__name__}: {error}'
    for parameter, entries in wrapper.optimizer.state.items():
        for key in MOMENTA:
            if getattr(entries.get(key), 'shape', parameter.shape) != parameter.shape:
                fault = f'{key} of shape {tuple(entries[key].shape)} for a weight of {tuple(parameter.shape)}'
    if fault:
        raise UserError(
            f"cannot resume from {path}: its optimizer state is not that of the config's model and optimizer "
            f'({fault}). To start from its weights alone: --cfg-options load_from=FILE'
        )
