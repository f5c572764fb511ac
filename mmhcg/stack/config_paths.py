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

from mmhcg.installation import places_of

NAME = 'mmhcg'
OURS = 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'  # by which a folder `configs` is known to be this package's


@functools.cache
def register_config_paths() -> None:
    """Let `_base_` and `mmengine.hub.get_config` find `mmhcg::NAME.py`."""
    # Without a scope, as for a plain path: the heir's types are found as if it lay among our configs.
    _extend(Config, '_get_cfg_path', lambda path, heir: (str(_config(path)), None))
    _extend(hub, '_get_package_and_cfg_path', lambda path: (NAME, _config(path)))
    _extend(hub, 'get_installed_path', lambda package: package)
    _extend(hub, '_get_cfg_metainfo', lambda package, config: {'Config': str(config)})


def _config(path: str) -> Path:
    """The file that `mmhcg::NAME.py` stands for.

    Raises:
        FileNotFoundError: There is none; the message lists those there are, or says that there are none.
    """
    places = places_of('configs')
    configs = next((place for place in places if (place / OURS).is_file()), None)
    if configs is None:
        raise FileNotFoundError(
            f"{path}: mmhcg's configs are neither in {places[0]} nor in {places[1]}, as they are after "
            '`pip install` and in a checkout. Install the package, or put its folder `configs` there.'
        )
    config = configs / path.partition('::')[2]
    if not config.is_file():
        files = (file.relative_to(configs) for file in configs.rglob('*.py'))
        known = ', '.join(sorted(file.as_posix() for file in files if '_base_' not in file.parts))
        raise FileNotFoundError(f'{path}: mmhcg has no such config. It has {known}')
    return config


def _extend(owner: Any, function: str, ours: Callable[..., Any]) -> None:
    """Let `owner.function` do as `ours` for what is mmhcg's, and as before for all else."""
    theirs = getattr(owner, function, None)
    if theirs is None:  # in a fork of MMEngine that finds configs in another way
        return

    @functools.wraps(theirs)
    def extended(path: str, *args: Any) -> Any:
        is_ours = path.partition('::')[0] == NAME
        return (ours if is_ours else theirs)(path, *args)

    setattr(owner, function, extended)
