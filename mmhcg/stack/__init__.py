"""What OpenMMLab's last releases lack: mmcv's operators on today's PyTorch, safe checkpoints, our configs."""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Optional

EXTENSION = 'mmcv._ext'


class ExtensionFinder:
    """Finds `mmcv._ext`, the module of mmcv's compiled operators, in `mmcv_ops.py`.

    It stands last in `sys.meta_path`, so Python asks it only after it found no compiled extension: whoever
    has one keeps it.
    """

    @staticmethod
    def find_spec(
        fullname: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[ModuleSpec]:
        """The spec that loads `mmcv_ops.py` under the name `mmcv._ext`; None for every other module."""
        if fullname != EXTENSION:
            return None
        return importlib.util.spec_from_file_location(fullname, Path(__file__).with_name('mmcv_ops.py'))


def has_compiled_mmcv() -> bool:
    """Whether mmcv's operators are its compiled ones, and not those of `mmcv_ops.py`."""
    return Path(str(importlib.import_module(EXTENSION).__file__)).name != 'mmcv_ops.py'


def prepare() -> None:
    """Make mmcv's operators importable, checkpoints safe to load and save, `mmhcg::NAME.py` a config's name.

    A second call changes nothing. Imports neither mmcv nor torchvision, and nothing has to be installed.
    """
    # MMEngine's, on every start, for a release that is the last. Behind all filters that the user has set.
    warnings.filterwarnings('ignore', 'pkg_resources is deprecated as an API', append=True)
    if ExtensionFinder not in sys.meta_path:
        sys.meta_path.append(ExtensionFinder)
    if importlib.util.find_spec('mmengine') is not None:
        from mmhcg.stack.checkpoint_sources import register_safe_loading
        from mmhcg.stack.config_paths import register_config_paths
        from mmhcg.stack.local_files import register_atomic_files

        register_safe_loading()
        register_atomic_files()
        register_config_paths()
