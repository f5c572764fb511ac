"""Names in a config that nothing takes: told before the run, where MMEngine would stumble over them in it.

Of the model nothing is checked here: `preflight.check_model` builds it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

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
    Registry,
    init_default_scope,
)
from torch.utils.data import DataLoader

from mmhcg.runs.config import dicts_of, nearest
from mmhcg.runs.datasets import metrics
from mmhcg.runs.errors import UserError

# Keys that MMEngine takes out before it calls the class
OF_LOADERS = ('num_batch_per_epoch', 'disable_subprocess_warning')
OF_OPTIMIZERS = ('type', 'constructor', 'paramwise_cfg')

Part = tuple[
    str, Any, Registry, Collection[str]
]  # its path, what is there, where its type is found, more keys


def check_names(cfg: Config, modes: Sequence[str]) -> None:
    """Check `type` and keys of data, optimizer, schedules, loops, metrics and hooks by their constructors.

    Raises:
        UserError: A type is not registered, or a key is none of its arguments; the message has its path.
    """
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    name = cfg.filename or 'the config'
    for mode in modes:
        _check_keys(f'{name}: {mode}_dataloader', cfg.get(f'{mode}_dataloader'), DataLoader, OF_LOADERS)
    for path, part, registry, more in _parts(cfg, modes):
        if not isinstance(part, dict) or 'type' not in part:
            continue
        kind = part['type']
        if isinstance(kind, str):
            with registry.switch_scope_and_registry(None) as found:
                kind = found.get(kind)
                if kind is None:
                    known = nearest(part['type'], {*found.module_dict, *registry.module_dict})
                    raise UserError(f'{name}: {path}.type={part["type"]!r} is not registered{known}')
        _check_keys(f'{name}: {path}', part, kind, ('type', *more))


def accepted(kind: type) -> tuple[set[str], bool]:
    """Names that a constructor takes, itself or by passing `**kwargs` to its parent; whether it takes any."""
    names: set[str] = set()
    passes_on = True
    for base in kind.__mro__:
        if base is object or '__init__' not in vars(base):
            continue
        parameters = inspect.signature(vars(base)['__init__']).parameters.values()
        names.update(parameter.name for parameter in parameters)
        passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        if not passes_on:
            break
    return names, passes_on


def _parts(cfg: Config, modes: Sequence[str]) -> Iterator[Part]:
    for mode in modes:
        loader = cfg.get(f'{mode}_dataloader') or {}
        for key in ('sampler', 'batch_sampler'):
            yield f'{mode}_dataloader.{key}', loader.get(key), DATA_SAMPLERS, ()
        # What stands inside a transform may be another library's, such as Albumentations'
        for path, node in dicts_of(loader.get('dataset'), f'{mode}_dataloader.dataset'):
            if re.search(r'dataset(s\.\d+)?$', path):
                yield path, node, DATASETS, ()
            elif re.fullmatch(r'((?!pipeline).)*pipeline\.\d+', path):
                yield path, node, TRANSFORMS, ()
        yield f'{mode}_cfg', cfg.get(f'{mode}_cfg'), LOOPS, ()
        if mode != 'train':
            for metric in metrics(cfg, mode):
                yield f'{mode}_evaluator', metric, METRICS, ()
    if 'train' in modes:
        wrapper = cfg.get('optim_wrapper') or {}
        yield 'optim_wrapper', {'type': 'OptimWrapper', **wrapper}, OPTIM_WRAPPERS, OF_OPTIMIZERS
        yield 'optim_wrapper.optimizer', wrapper.get('optimizer'), OPTIMIZERS, ()
        schedules = cfg.get('param_scheduler') or []
        for index, schedule in enumerate([schedules] if isinstance(schedules, dict) else schedules):
            yield f'param_scheduler.{index}', schedule, PARAM_SCHEDULERS, ('convert_to_iter_based',)
    for key, hook in (cfg.get('default_hooks') or {}).items():
        yield f'default_hooks.{key}', hook, HOOKS, ('priority',)
    for index, hook in enumerate(cfg.get('custom_hooks') or []):
        yield f'custom_hooks.{index}', hook, HOOKS, ('priority',)


def _check_keys(where: str, part: Any, kind: Any, more: Collection[str]) -> None:
    if not isinstance(part, dict) or not inspect.isclass(kind):
        return
    names, takes_any = accepted(kind)
    for key in () if takes_any else part:
        if key not in names and key not in more and key != '_scope_':
            raise UserError(f'{where}.{key}: {kind.__name__} takes no `{key}`{nearest(key, names)}')
