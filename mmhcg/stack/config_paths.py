"""`mmhcg::NAME.py` as the name of a shipped config, wherever MMEngine takes `mmdet::PATH.py`.

MMEngine resolves `PACKAGE::PATH` for a fixed table of packages, wants a folder in the path, and does not find
packages that are installed in editable mode. Its functions import each other by name, so each module that
calls them gets its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hub import hub

PACKAGE = Path(__file__).parents[1]
CONFIGS = next(
    filter(Path.is_dir, (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs'))
)  # wheel, source


@functools.cache
def register_config_paths() -> None:
    """Let `_base_` and `mmengine.hub.get_config` find `mmhcg::NAME.py`."""
    # Without a scope, as for a plain path: the heir's types are found as if it lay among our configs.
    _extend(Config, '_get_cfg_path', lambda path, heir: (str(CONFIGS / _name(path)), None))
    _extend(hub, '_get_package_and_cfg_path', lambda path: (PACKAGE.name, _name(path)))
    _extend(hub, 'get_installed_path', lambda package: package)
    _extend(hub, '_get_cfg_metainfo', lambda package, name: {'Config': str(CONFIGS / name)})


def _name(path: str) -> str:
    """NAME.py of `mmhcg::NAME.py`, which must be there."""
    name = path.partition('::')[2]
    if not (CONFIGS / name).is_file():
        known = ', '.join(sorted(config.name for config in CONFIGS.glob('*.py')))
        raise FileNotFoundError(f'{path}: mmhcg has no such config. It has {known}')
    return name


def _extend(owner: Any, function: str, ours: Callable[..., Any]) -> None:
    """Let `owner.function` do as `ours` for what is mmhcg's, and as before for all else."""
    theirs = getattr(owner, function, None)
    if theirs is None:  # in a fork of MMEngine that finds configs in another way
        return

    @functools.wraps(theirs)
    def extended(path: str, *args: Any) -> Any:
        is_ours = path.partition('::')[0] == PACKAGE.name
        return (ours if is_ours else theirs)(path, *args)

    setattr(owner, function, extended)
