"""Safe checkpoint loading for MMEngine: `weights_only=True` and a list of what else a file may hold.

A pickle may name any function for its reader to call. PyTorch's `weights_only=True` calls only what tensors
need, which is not enough for MMEngine's own checkpoints: they hold logs, NumPy numbers and the state of
learning rate schedules. `allowed_globals` adds just these. Nothing falls back to unsafe loading.
"""

import codecs
import functools
import os
import pickle
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, Optional, Union
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch.nn import Module

from mmhcg.stack.unpickler import safe_globals

MapLocation = Union[None, str, torch.device, dict, Callable]

_IF_DAMAGED = (
    'Probably its writing, copying or download was cut short: take an earlier one, or delete this one and '
    'copy or download it again.'
)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded; the message names the file, the reason and what to do."""


def load_checkpoint_file(path: Union[str, Path], map_location: MapLocation = 'cpu') -> Any:
    """Content of a checkpoint of PyTorch's or MMEngine's, or the tensors of a `.safetensors` file.

    `map_location` is that of `torch.load`. Raises CheckpointError if there is no such file, or if it is
    damaged or holds what is not allowed. Leaves out `meta['config']`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        raise CheckpointError(f'checkpoint {path}: is a folder. Name a file in it.')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path}: there is no such file. Check the path.')
    if path.stat().st_size == 0:
        raise CheckpointError(f'checkpoint {path}: the file is empty. {_IF_DAMAGED}')
    if path.suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    _check_archive(path)
    try:
        with safe_globals(allowed_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything: KeyError, EOFError, UnicodeError, ...
        forbidden = re.search(r'GLOBAL (\S+)', str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise CheckpointError(
                f'checkpoint {path}: refused, for it asks for {forbidden[1]}, which neither weights nor '
                "MMEngine's training state need, and which could run any code. Ask whoever wrote the file "
                'for its weights alone: `torch.save(model.state_dict(), FILE)`.'
            ) from None
        # not PyTorch's advice before it, which is to load unsafely
        reason = (str(error).rpartition('WeightsUnpickler error:')[2].strip().splitlines() or [''])[0]
        raise CheckpointError(
            f'checkpoint {path}: cannot be loaded ({type(error).__name__}: {reason}). If it is '
            f'a checkpoint at all: {_IF_DAMAGED[0].lower()}{_IF_DAMAGED[1:]}'
        ) from error
    # Runner.resume executes this as a Python file, to find one number. Today's MMEngine does not write it.
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    return checkpoint


def check_fit(source: Union[str, Path], content: Any, module: Module, prefix: Optional[str] = None) -> None:
    """Raises CheckpointError where a checkpoint lacks entries of the module, or has others in their place.

    MMEngine only logs this, and goes on with random weights. `prefix` is the part of the checkpoint that the
    module is to get, e.g. 'backbone'. Entries are found as MMEngine finds them.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(
            f'checkpoint {source}: holds a {type(content).__name__} and no weights by name.'
        )
    start = f'{prefix.rstrip(".")}.' if prefix else 'module.'
    found = {
        str(name).removeprefix(start): tensor
        for name, tensor in state.items()
        if not prefix or str(name).startswith(start)
    }
    wanted = {name.removeprefix('module.'): tensor for name, tensor in module.state_dict().items()}
    faults = []
    for name, tensor in wanted.items():
        shape = getattr(found.get(name), 'shape', None)
        if shape is None and not name.endswith('num_batches_tracked'):
            faults.append(f'{name} is missing')
        elif shape is not None and shape != tensor.shape:
            faults.append(f'{name} has shape {tuple(shape)} instead of {tuple(tensor.shape)}')
        elif shape is not None and not found[name].isfinite().all():
            faults.append(f'{name} holds NaN or infinity')

    def holds_detector(names: Iterable[str]) -> bool:
        return any(str(name).startswith('backbone.') for name in names)

    if faults:
        advice = (
            "Is it another model's, or one of the authors' files, which tools/convert_checkpoint.py converts?"
        )
        if not prefix and holds_detector(state) and not holds_detector(wanted):
            advice = "It holds a whole model: add prefix='backbone.' to init_cfg."
        raise CheckpointError(
            f'checkpoint {source}: does not fit {type(module).__name__}: {faults[0]}, and {len(faults) - 1} '
            f'more of {len(wanted)} entries do not fit. {advice}'
        )


def _check_archive(path: Path) -> None:
    """Tell what is wrong with a zip archive, the format of `torch.save` since PyTorch 1.6, in plain words."""
    with path.open('rb') as file:
        if file.read(4) != b'PK\x03\x04':
            return
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f'checkpoint {path}: the end of the file is missing. {_IF_DAMAGED}')
    with zipfile.ZipFile(path) as archive:
        # Before PyTorch 2.6 torch.load hands these to torch.jit.load, whatever weights_only says.
        if any(member.endswith('/constants.pkl') for member in archive.namelist()):
            raise CheckpointError(f'checkpoint {path}: is TorchScript. Save its state_dict() instead.')


def _load_safetensors(path: Path, map_location: MapLocation) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f'checkpoint {path}: `pip install safetensors` to load it.') from error
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f'checkpoint {path}: cannot be loaded ({error}). {_IF_DAMAGED}') from error
    # This format does not record where the tensors came from, which is what None and functions go by.
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    return {key: tensor.to(device) for key, tensor in tensors.items()}


# What MMEngine's own checkpoints hold besides tensors

_NUMBERS_AND_TEXT = '?bhilqBHILQefdgFDGSU'  # codes of numpy.dtype
_METHODS = {
    HistoryBuffer: ('min', 'max', 'current', 'mean'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


@functools.cache
def allowed_globals() -> tuple[Any, ...]:
    """Functions and classes that a file may name on top of PyTorch's own list, each under its own name."""
    try:
        from numpy._core import multiarray
    except ImportError:  # NumPy 1
        from numpy.core import multiarray
    # Files written with NumPy 1 and 2 differ in the module's name, and each must load with the other.
    numpy_functions = [
        _as(module, name, getattr(multiarray, name))
        for module in ('numpy.core.multiarray', 'numpy._core.multiarray')
        for name in ('_reconstruct', 'scalar')
    ]
    return (
        *_METHODS,  # HistoryBuffer is the log, and in every checkpoint
        Counter,  # the milestones of MultiStepLR
        np.ndarray,
        *numpy_functions,
        _as('numpy', 'dtype', _dtype),
        _as('mmengine.config.config', 'ConfigDict', dict),  # dicts in a data set's metainfo
        *{type(np.dtype(code)) for code in _NUMBERS_AND_TEXT},
        _as('_codecs', 'encode', codecs.encode),  # for bytes; PyTorch 2.1 does not list it
        _as('builtins', 'getattr', _method),
        _as('__builtin__', 'getattr', _method),  # its name in Python 2, whose pickle format torch.save keeps
    )


def _as(module: str, name: str, function: Callable) -> Callable:
    """`function` under the name by which a file asks for it."""

    def alias(*args: Any) -> Any:
        return function(*args)

    alias.__module__, alias.__name__, alias.__qualname__ = module, name, name
    return alias


def _dtype(code: str, *args: Any) -> np.dtype:
    """`numpy.dtype`, but not of objects or structs, by which a file could pass off its bytes as pointers."""
    dtype = np.dtype(code, *args)
    if dtype.char not in _NUMBERS_AND_TEXT:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL numpy.dtype({code!r})')
    return dtype


def _method(owner: type, name: str) -> Callable:
    """`getattr`, which is how methods are pickled, of those that MMEngine keeps in its checkpoints."""
    if name not in _METHODS.get(owner, ()):
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL getattr({owner!r},{name!r})')
    return getattr(owner, name)


# MMEngine's extension point: a loader for each prefix. It logs what follows `load_from_` in their names.


def register_safe_loading() -> None:
    """Let MMEngine (Runner, init_cfg, mmdet) load all checkpoints as `load_checkpoint_file` does."""
    for prefixes, loader in (
        ('', load_from_local),
        (('http://', 'https://'), load_from_http),
        (('modelzoo://', 'torchvision://'), load_from_torchvision),
        (('open-mmlab://', 'openmmlab://'), load_from_openmmlab),
        ('mmcls://', load_from_mmcls),
        ('pavi://', load_from_pavi),
        ((r'(\S+\:)?s3://', r'(\S+\:)?petrel://'), load_from_ceph),
    ):
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_local(filename: str, map_location: MapLocation = None) -> Any:
    return load_checkpoint_file(filename, map_location)


def load_from_http(filename: str, map_location: MapLocation = None) -> Any:
    """Load from PyTorch's folder of downloads, to which the first process adds what is not there yet."""
    path = Path(torch.hub.get_dir(), 'checkpoints', os.path.basename(urlparse(filename).path))
    rank, world_size = get_dist_info()
    if rank == 0:
        _download(filename, path)
    if world_size > 1:
        barrier()
        _download(filename, path)  # on machines that do not see the first one's disk
    return load_checkpoint_file(path, map_location)


def load_from_torchvision(filename: str, map_location: MapLocation = None) -> Any:
    return load_from_http(_address(filename, mmengine_checkpoint.get_torchvision_models()), map_location)


def load_from_openmmlab(filename: str, map_location: MapLocation = None) -> Any:
    prefix, name = filename.split('://', 1)
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    place = _address(f'{prefix}://{name}', mmengine_checkpoint.get_external_models())
    if urlparse(place).scheme in ('http', 'https'):
        return load_from_http(place, map_location)
    return load_checkpoint_file(Path(mmengine_checkpoint._get_mmengine_home(), place), map_location)


def load_from_mmcls(filename: str, map_location: MapLocation = None) -> Any:
    checkpoint = load_from_http(_address(filename, mmengine_checkpoint.get_mmcls_models()), map_location)
    return mmengine_checkpoint._process_mmcls_checkpoint(checkpoint)


def load_from_pavi(filename: str, map_location: MapLocation = None) -> Any:
    raise CheckpointError(f'checkpoint {filename}: download it from PAVI and name the file instead.')


def load_from_ceph(filename: str, map_location: MapLocation = None) -> Any:
    backend = get_file_backend(filename, backend_args={'backend': 'petrel'})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, os.path.basename(filename))
        path.write_bytes(backend.get(filename))
        return load_checkpoint_file(path, map_location)


def _address(filename: str, models: dict[str, str]) -> str:
    """Where the model lies that `filename`, a prefix and a name, stands for."""
    name = filename.split('://', 1)[1]
    if name not in models:
        raise CheckpointError(f'checkpoint {filename}: MMEngine knows no model {name!r}. Check the name.')
    return models[name]


def _download(url: str, path: Path) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path))
    except OSError as error:
        raise CheckpointError(
            f'checkpoint {url}: cannot be downloaded ({error}). Or put it at {path}.'
        ) from error
