"""Safe checkpoint loading for MMEngine: `weights_only=True` and a list of what else a file may hold.

A pickle may name any function for its reader to call. PyTorch's `weights_only=True` calls only what tensors
need, which is not enough for MMEngine's own checkpoints: they hold logs, NumPy numbers and the state of
learning rate schedules. `allowed_globals` adds just these. Nothing falls back to unsafe loading.
"""

import codecs
import functools
import pickle
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

from mmhcg.stack.unpickler import claimed_bytes, safe_globals

MapLocation = Union[None, str, torch.device, dict, Callable]

_IF_DAMAGED = (
    'Probably its writing, copying or download was cut short: take an earlier one, or delete this one and '
    'copy or download it again.'
)
_ASK_FOR_WEIGHTS = 'Ask whoever wrote the file for its weights alone: `torch.save(model.state_dict(), FILE)`.'
_CLAIMS_TOO_MUCH = f'refused, for it claims more numbers than it stores. {_ASK_FOR_WEIGHTS}'


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be loaded; the message names the file, the reason and what to do."""


def load_checkpoint_file(path: Union[str, Path], map_location: MapLocation = 'cpu') -> Any:
    """Content of a checkpoint of PyTorch's or MMEngine's, or the tensors of a `.safetensors` file.

    `map_location` is that of `torch.load`. Raises CheckpointError if there is no such file, or if it is
    damaged or holds what is not allowed. Leaves out `meta['config']`.
    """
    path = Path(path).expanduser()
    _check_file(path)
    if path.suffix == '.safetensors':
        return _load_safetensors(path, map_location)
    try:
        with safe_globals(allowed_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything: KeyError, EOFError, UnicodeError, ...
        raise CheckpointError(f'checkpoint {path}: {_explain(error)}') from error
    # Runner.resume executes this as a Python file, to find one number. Today's MMEngine does not write it.
    if isinstance(checkpoint, dict) and isinstance(checkpoint.get('meta'), dict):
        checkpoint['meta'].pop('config', None)
    return checkpoint


def _check_file(path: Path) -> None:
    """Tell what is no checkpoint, in plain words, before its content is looked at."""
    if path.is_dir():
        raise CheckpointError(f'checkpoint {path}: is a folder. Name a file in it.')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path}: there is no such file. Check the path.')
    with path.open('rb') as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f'checkpoint {path}: the file is empty. {_IF_DAMAGED}')
    if re.fullmatch(rb'[\t\n\r\x20-\x7e\x80-\xff]+', head):  # no format of weights does without the others
        kind = 'an HTML' if head.lstrip().startswith(b'<') else 'a text'
        raise CheckpointError(
            f'checkpoint {path}: is {kind} file, not a checkpoint: {head[:40].decode(errors="replace")!r}... '
            'Was a download page or a placeholder saved instead of the file?'
        )
    if head.startswith(b'PK\x03\x04'):
        _check_archive(path)


def _explain(error: Exception) -> str:
    """Why a file could not be loaded and what to do, without PyTorch's advice, which is to load unsafely."""
    forbidden = re.search(r'GLOBAL (\S+)', str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if forbidden:
        return (
            f"refused, for it asks for {forbidden[1]}, which neither weights nor MMEngine's training state "
            f'need, and which could run any code. {_ASK_FOR_WEIGHTS}'
        )
    if re.search(r'Unsupported operand 1[45]\d', str(error)):  # 0x8c and up: protocol 4, torch.save's is 2
        return (
            'refused, for it is a pickle of a form that torch.save does not write, and may ask for code to '
            f'be run. {_ASK_FOR_WEIGHTS}'
        )
    if re.search('resize storage|byte size|out of bounds', str(error)):  # PyTorch's words for it
        return _CLAIMS_TOO_MUCH
    reason = (str(error).rpartition('WeightsUnpickler error:')[2].strip().splitlines() or [''])[0]
    return (
        f'cannot be loaded ({type(error).__name__}: {reason}). It is no checkpoint, or a damaged one: '
        f'{_IF_DAMAGED[0].lower()}{_IF_DAMAGED[1:]}'
    )


def _check_archive(path: Path) -> None:
    """Tell what is wrong with a zip archive, the format of `torch.save` since PyTorch 1.6."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # at the end is the list of all that it holds
        raise CheckpointError(f'checkpoint {path}: the end of the file is missing. {_IF_DAMAGED}') from error
    with archive:
        records = archive.infolist()
        # Before PyTorch 2.6 torch.load hands these to torch.jit.load, whatever weights_only says.
        if any(record.filename.endswith('/constants.pkl') for record in records):
            raise CheckpointError(f'checkpoint {path}: is TorchScript. Save its state_dict() instead.')
        size = sum(record.file_size for record in records)
        if size > path.stat().st_size or len({record.filename.lower() for record in records}) < len(records):
            raise CheckpointError(
                f'checkpoint {path}: refused, for its records are compressed or share bytes or names, as '
                f'torch.save never has them; they unpack to {size / 1e6:,.0f} MB. {_ASK_FOR_WEIGHTS}'
            )
        # PyTorch does not look at the checksums, though it takes but 0.02 s for 50 MB. All are 0 where
        # torch.save was told to leave them out.
        if any(record.CRC for record in records) and (damaged := _damaged(archive)):
            raise CheckpointError(f'checkpoint {path}: {damaged} is damaged. {_IF_DAMAGED}')
        stored = {record.filename: record.file_size for record in records}
    try:
        claimed = claimed_bytes(torch._C.PyTorchFileReader(str(path)).get_record('data.pkl'))
    except Exception as error:  # as of torch.load
        raise CheckpointError(f'checkpoint {path}: {_explain(error)}') from error
    root = records[0].filename.partition('/')[0]  # as PyTorch finds it
    if any(size > stored.get(f'{root}/data/{key}', -1) for key, size in claimed.items()):
        # PyTorch 2.1 would read on, in memory that is not the file's.
        raise CheckpointError(f'checkpoint {path}: {_CLAIMS_TOO_MUCH}')


def _damaged(archive: zipfile.ZipFile) -> Optional[str]:
    """The first record that is not what was written, if any."""
    try:
        return archive.testzip()
    except Exception:  # which one is not known where a list of records leads nowhere
        return 'its list of records'


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
