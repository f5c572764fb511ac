"""HCGNet (AAAI 2020) as a backbone for MMDetection 3.x.

Importing the package registers `HCGNet` and prepares the OpenMMLab stack. Where MMEngine is not installed,
only `mmhcg.network` is there: it needs PyTorch alone.
"""

from importlib.util import find_spec

__version__ = '0.1.0'
__all__ = ['HCGNet', '__version__']

if find_spec('mmengine'):
    from mmhcg import stack

    stack.prepare()
    from mmhcg.backbone import HCGNet
else:

    def __getattr__(name: str):
        if name == 'HCGNet':
            raise ImportError(
                "mmhcg.HCGNet needs MMEngine and MMDetection: pip install 'mmhcg[standalone]' installs both; "
                'mmhcg.network.Trunk is the same network in PyTorch alone.'
            )
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
