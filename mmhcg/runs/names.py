"""Names in a config that nothing takes: told before the run, where MMEngine would stumble over them in it.

Of the model nothing is checked here: `preflight.check_model` builds it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    DefaultScope,
    Registry,
)
from torch.utils.data import DataLoader

from mmhcg.runs.config import dicts_of, nearest, parameters_of, resolve, unregistered
from mmhcg.runs.datasets import metrics
from mmhcg.runs.errors import UserError

# Keys that MMEngine takes out before it calls the class
OF_LOADERS = ('num_batch_per_epoch', 'disable_subprocess_warning')
OF_OPTIMIZERS = ('constructor', 'paramwise_cfg')
DEFAULT_CONSTRUCTOR = 'DefaultOptimWrapperConstructor'

LOOPS_BY = {'val': 'ValLoop', 'test': 'TestLoop', True: 'EpochBasedTrainLoop', False: 'IterBasedTrainLoop'}


class Part(NamedTuple):
    """A part of a config that MMEngine builds.

    Attributes:
        path: Its dotted path.
        node: What is there.
        registry: Where its type is found.
        more: Keys that MMEngine takes out before it calls the class.
    """

    path: str
    node: Any
    registry: Registry
    more: Collection[str] = ()


def check_names(cfg: Config, modes: Sequence[str]) -> None:
    """Check `type` and keys of data, optimizer, schedules, loops, metrics and hooks by their constructors.

    Where a constructor may take any key, as `**kwargs` of a user's class, none is refused.

    Raises:
        UserError: A type is not registered, or a key is none of its arguments; the message has its path.
    """
    name = cfg.filename or 'the config'
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
        for mode in modes:
            _check_keys(f'{name}: {mode}_dataloader', cfg.get(f'{mode}_dataloader'), DataLoader, OF_LOADERS)
        for part in _parts(cfg, modes):
            if isinstance(part.node, dict) and 'type' in part.node:
                kind = resolve(part.node, part.registry)
                if kind is None:
                    raise UserError(f'{name}: {part.path}.{unregistered(part.node, part.registry)}')
                _check_keys(f'{name}: {part.path}', part.node, kind, ('type', '_scope_', *part.more))


def _parts(cfg: Config, modes: Sequence[str]) -> Iterator[Part]:
    for mode in modes:
        loader = cfg.get(f'{mode}_dataloader') or {}
        for key in ('sampler', 'batch_sampler'):
            yield Part(f'{mode}_dataloader.{key}', loader.get(key), DATA_SAMPLERS)
        # What stands inside a transform may be another library's, such as Albumentations'
        for path, node in dicts_of(loader.get('dataset'), f'{mode}_dataloader.dataset'):
            if re.fullmatch(r'((?!pipeline).)*dataset(s\.\d+)?', path):
                yield Part(path, node, DATASETS)
            elif re.fullmatch(r'((?!pipeline).)*pipeline\.\d+', path):
                yield Part(path, node, TRANSFORMS)
        loop = cfg.get(f'{mode}_cfg')
        if isinstance(loop, dict) and 'type' not in loop:
            kind = LOOPS_BY[bool(loop.get('by_epoch')) if mode == 'train' else mode]
            yield Part(f'{mode}_cfg', dict(loop, type=kind), LOOPS, ('by_epoch',) if mode == 'train' else ())
        else:
            yield Part(f'{mode}_cfg', loop, LOOPS)
        if mode != 'train':
            for metric in metrics(cfg, mode):
                yield Part(f'{mode}_evaluator', metric, METRICS)
    if 'train' in modes:
        wrapper = cfg.get('optim_wrapper') or {}
        if wrapper.get('constructor', DEFAULT_CONSTRUCTOR) == DEFAULT_CONSTRUCTOR:
            # Other constructors take what they want
            yield Part('optim_wrapper', {'type': 'OptimWrapper', **wrapper}, OPTIM_WRAPPERS, OF_OPTIMIZERS)
            yield Part('optim_wrapper.optimizer', wrapper.get('optimizer'), OPTIMIZERS)
        schedules = cfg.get('param_scheduler') or []
        for index, schedule in enumerate([schedules] if isinstance(schedules, dict) else schedules):
            yield Part(f'param_scheduler.{index}', schedule, PARAM_SCHEDULERS, ('convert_to_iter_based',))
    for key, hook in (cfg.get('default_hooks') or {}).items():
        yield Part(f'default_hooks.{key}', hook, HOOKS, ('priority',))
    for index, hook in enumerate(cfg.get('custom_hooks') or []):
        yield Part(f'custom_hooks.{index}', hook, HOOKS, ('priority',))


def _check_keys(where: str, part: Any, kind: Any, more: Collection[str]) -> None:
    if not isinstance(part, dict):
        return
    names, are_all = parameters_of(kind)
    for key in part if are_all else ():
        if key not in names and key not in more:
            raise UserError(f'{where}.{key}: {kind.__name__} takes no `{key}`{nearest(key, names)}')
