"""HCGNet (AAAI 2020) as a backbone for MMDetection 3.x.

Importing the package registers `HCGNet` and prepares the OpenMMLab stack. Where MMEngine is not installed,
only `mmhcg.network` is there: it needs PyTorch alone.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mmhcg.installation import DOCTOR

__version__ = '0.1.0'
__all__ = ['HCGNet', '__version__', 'get_config', 'list_archs', 'swap_backbone']


def list_archs() -> list[str]:
    """Names that `arch` takes: 'a1', 'a2', 'a3' (CIFAR), 'b', 'c' (ImageNet)."""
    from mmhcg.network import VARIANTS

    return list(VARIANTS)


def get_config(name: str):
    """MMEngine's Config of a name: 'mask_rcnn_hcgnet_b_fpn_1x_coco' or 'pretrain/hcgnet_b_in1k', say.

    Raises FileNotFoundError, which lists what there is.
    """
    from mmengine.hub import get_config

    return get_config(f'mmhcg::{name.removesuffix(".py")}.py')


_fault = None
if find_spec('mmengine'):
    try:
        from mmhcg import stack

        stack.prepare()
        from mmhcg.backbone import HCGNet
    # Versions do not fit together: importing must still work, so that the doctor can run.
    except (Exception, SystemExit) as error:
        _fault = error
        warnings.warn(
            f'HCGNet is not registered ({type(error).__name__}: {error}). {DOCTOR}',
            stacklevel=2,
        )


def __getattr__(name: str) -> Any:
    if name == 'swap_backbone':  # lazily: it imports the runner and torchvision
        return import_module('mmhcg.swap').swap_backbone
    if name == 'HCGNet':
        raise ImportError(
            'mmhcg.HCGNet needs MMEngine and MMDetection; mmhcg.network.Trunk is the same network in PyTorch '
            f'alone. {DOCTOR}'
        ) from _fault
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
