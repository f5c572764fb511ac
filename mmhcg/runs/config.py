"""From what a user names to a config, and from a config to its detector."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, Registry, init_default_scope
from mmengine.runner import Runner
from torch.nn import Module

from mmhcg.installation import hint
from mmhcg.runs.errors import UserError, importing

# Entries of a config that are read where they are, beside those of the Runner
OPTIONAL = ('custom_imports', 'model_wrapper_cfg', 'tta_model', 'tta_pipeline')
# mmcv's norm by its name in the registry, and the class itself, which is called as PyTorch's is
MM_SYNC_BN = ('MMSyncBN', 'SyncBatchNorm')
# Whose constructors hand `**kwargs` on to their parents as they are
LIBRARIES = ('mmengine', 'mmdet', 'mmcv', 'mmpretrain', 'torch', 'mmhcg')


def load_config(
    config: str | Path | Config | dict[str, Any], cfg_options: dict[str, Any] | None = None
) -> Config:
    """The config in a file or by its name (`mmhcg::NAME.py`), or a copy of the one given, with `cfg_options`.

    Raises:
        UserError: MMDetection, or mmpretrain for a classifier, cannot be imported; the file is missing or
            fails; or the options do not fit.
    """
    with importing():
        import mmdet
    if isinstance(config, (Config, dict)):
        cfg = deepcopy(config) if isinstance(config, Config) else Config(deepcopy(config))
    elif not isinstance(config, (str, os.PathLike)):
        raise UserError(f'a config is a file, a name such as mmdet::FAMILY/NAME.py or a dict, not {config!r}')
    elif '::' not in str(config) and not os.path.isfile(config):
        raise UserError(f'no config file {os.path.abspath(config)}')
    else:
        _check_name(str(config))
        try:
            cfg = get_config(str(config)) if '::' in str(config) else Config.fromfile(config)
        except Exception as error:  # a config is a program, so it can fail in any way
            if isinstance(error, UnboundLocalError) and isinstance(error.__context__, OSError):
                raise UserError(
                    f'cannot read the config {config}: MMEngine copies it to a temporary folder and cannot '
                    f'write there ({error.__context__}): make room, or set TMPDIR to another folder'
                ) from error
            raise UserError(f'cannot read the config {config}: {type(error).__name__}: {error}') from error
    _check_options(cfg, cfg_options or {})
    try:
        cfg.merge_from_dict(cfg_options or {})
    except (KeyError, TypeError, AssertionError) as error:
        raise UserError(f'--cfg-options do not fit the config: {error}') from error
    if is_classifier(cfg):
        try:
            import mmpretrain  # noqa: F401
        except ImportError as error:
            raise UserError(
                f'{cfg.filename or "the config"} trains a classifier, and mmpretrain cannot be imported '
                f'({error}): {hint("pretrain")}'
            ) from error
    else:
        with importing():
            import mmdet.models  # noqa: F401  first now, where torchvision and mmcv's operators are needed
    return cfg


def _check_options(cfg: Config, options: Iterable[str]) -> None:
    """Raises UserError where the NAME of an option `NAME.KEY=VALUE` is a slip of a known one."""
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, *OPTIONAL}
    for option in options:
        name, dot, _ = option.partition('.')
        if dot and name not in known and (near := nearest(name, known)):  # else it is for what we do not know
            raise UserError(f'--cfg-options {option}: the config has no `{name}`{near}')


def nearest(word: str, names: Iterable[str]) -> str:
    """The end of a message about a word that is none of the names."""
    return ''.join(f'; is it `{name}`?' for name in get_close_matches(word, list(names), 1))


def unregistered(part: ConfigDict, registry: Registry) -> str:
    """The end of a message about a `type` that `resolve` does not find."""
    with registry.switch_scope_and_registry(None) as found:
        near = nearest(str(part['type']), {*found.module_dict, *registry.module_dict})
    return f'type={part["type"]!r} is not registered{near}'


def resolve(part: ConfigDict, registry: Registry) -> Any:
    """What the `type` of a config stands for, as MMEngine finds it; None if it is not registered."""
    kind = part.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(part.get('_scope_')) as found:
        return found.get(kind)


def parameters_of(kind: Any) -> tuple[set[str], bool]:
    """Names that a class, or a function, takes as keys of a config, and whether these are all.

    `**kwargs` lead on to the parent; what a user's own class does with them cannot be known.
    """
    functions = [kind]
    if isinstance(kind, type):
        functions = [vars(base)['__init__'] for base in kind.__mro__[:-1] if '__init__' in vars(base)]
    names: set[str] = set()
    are_all = True
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # of C
            break
        names.update(parameter.name for parameter in parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            return names, are_all
        are_all = are_all and function.__module__.partition('.')[0] in LIBRARIES
    return names, False


def is_classifier(cfg: Config) -> bool:
    """Whether the config is one of mmpretrain's, as those of `configs/pretrain` are."""
    return cfg.get('default_scope') == 'mmpretrain'


def _check_name(name: str) -> None:
    """Raises UserError where another package than this one, whose names need no folder, has no such config.

    Or where MMEngine, which parses only letters and digits in the folder, cannot read the name.
    """
    package, _, rest = name.partition('::')
    if not rest or package == 'mmhcg' or not package.isidentifier() or not (spec := find_spec(package)):
        return
    configs = Path(spec.origin or '').parent / '.mim' / 'configs'
    if not configs.is_dir():
        return
    if not (configs / rest).is_file():
        names = [path.relative_to(configs).as_posix() for path in configs.rglob('*.py')]
        same = [other for other in names if Path(other).name == Path(rest).name]  # in another folder
        raise UserError(f'no config {name} in {configs}{nearest(rest, same or names)}')
    if not re.match(r'\w*/', rest):
        raise UserError(f'MMEngine cannot read the name {name}: give the file, {configs / rest}')


def detector_of(cfg: Config) -> ConfigDict:
    """The model, or where it wraps a detector, as semi-supervised ones and trackers do, that detector.

    Raises:
        UserError: there is none.
    """
    if not isinstance(cfg.get('model'), dict):
        raise UserError(f'{cfg.filename or "the config"} has no `model`: it is no config of a detector')
    return cfg.model.get('detector', cfg.model)


def dicts_of(node: Any, path: str = '') -> Iterator[tuple[str, ConfigDict]]:
    """A config, or a part of it, and all dicts below it, the outer ones first; each with its dotted path."""
    if isinstance(node, dict):
        yield path, node
        for key, child in node.items():
            yield from dicts_of(child, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from dicts_of(child, f'{path}.{index}')


def inits_of(part: ConfigDict) -> list[ConfigDict]:
    """The dicts of a model's `init_cfg`, which may be one, a list or None."""
    init_cfg = part.get('init_cfg') or []
    return [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg)


def class_name(part: Any) -> str:
    """The bare name of a `type` in a config, be it 'mmdet.X', 'X' or the class; or of an object's class."""
    kind = part.get('type') if isinstance(part, dict) else type(part)
    return getattr(kind, '__name__', str(kind)).rpartition('.')[2]


def alone(node: Any) -> Any:
    """A copy of a config, or of a part, that a single process can build: with BN for MMSyncBN.

    The constructor of mmcv's norm asks the other processes, of which there are none.
    """
    if isinstance(node, dict) and class_name(node) == 'HCGNet':
        return ConfigDict(node)  # it takes no such norm, and says so itself
    if isinstance(node, dict):
        copy = {key: alone(value) for key, value in node.items()}
        return ConfigDict(copy, type='BN') if class_name(copy) in MM_SYNC_BN else ConfigDict(copy)
    return type(node)(map(alone, node)) if isinstance(node, (list, tuple)) else node


def build_detector(config: str | Path | Config) -> Module:
    """The config's detector with random weights; UserError where it cannot be read or built."""
    cfg = load_config(config)
    return build_model(cfg, detector_of(cfg))


def build_model(cfg: Config, part: ConfigDict) -> Module:
    """The config's model, or a part of it, with random weights; UserError where it cannot be built."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    try:
        return MODELS.build(alone(part))
    except Exception as error:  # of any model's constructor
        raise UserError(
            f'{cfg.filename or "the config"}: its model cannot be built: {type(error).__name__}: {error}'
            f'{_place_of_slip(cfg, str(error))}'
        ) from error


def _place_of_slip(cfg: Config, message: str) -> str:
    """The end of a message about a key that a class does not take: where it is, and what it may stand for."""
    slip = re.search(r"unexpected keyword argument '(\w+)'", message)
    if not slip:
        return ''
    key = slip[1]
    places = [(path, node) for path, node in dicts_of(cfg.model, 'model') if key in node]
    if len(places) != 1 or 'type' not in places[0][1]:
        return ''
    path, node = places[0]
    names = parameters_of(resolve(node, MODELS))[0]
    if key in names:  # the class hands it on to another, which does not take it
        return ''
    return f' ({path}.{key}{nearest(key, names)})'


def init_weights(model: Module) -> None:
    """The model's initial weights, without MMEngine's word on every parameter."""
    with patch.object(MMLogger.get_current_instance(), 'disabled', True):
        model.init_weights()
