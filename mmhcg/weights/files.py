"""Read untrusted checkpoints; write weights atomically."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmhcg.weights.entries import FULL, form_fault, value_fault

SUFFIXES = ('.safetensors', '.pth')


class WeightsError(ValueError):
    """A file that is not what it should be; the message names the file, the entry and the reason."""


def read_entries(src: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, out of its container (`net`, `state_dict` or none), no `module.`.

    Raises:
        WeightsError: It holds no tensors by name, or one in half precision or otherwise odd (`form_fault`).
        mmhcg.stack.checkpoints.CheckpointError: The file cannot be read, or asks for code to be run.
    """
    from mmhcg.stack.checkpoints import load_checkpoint_file

    content = load_checkpoint_file(src)
    for key in ('net', 'state_dict'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f'{src} holds no state dict')
    entries = {str(name).removeprefix('module.'): tensor for name, tensor in content.items()}
    if len(entries) != len(content):
        raise WeightsError(f'{src} holds entries both with and without the prefix `module.`')
    claimed: Counter[int] = Counter()  # bytes by storage: entries may share one
    for name, entry in entries.items():
        fault = form_fault(entry, (*FULL, torch.int64))  # half precision has lost digits
        if not fault:
            storage = entry.untyped_storage()
            claimed[storage.data_ptr()] += entry.nbytes
            if claimed[storage.data_ptr()] > storage.nbytes():
                fault = 'claims elements that the file stores for another one'
        if fault:
            raise WeightsError(f'{src}: entry {name} {fault}')
    return entries


def check_values(src: str | Path, entries: Mapping[str, Tensor]) -> None:
    """Raises WeightsError where an entry holds numbers that no network can use."""
    for name, entry in entries.items():
        if fault := value_fault(name, entry):
            raise WeightsError(f'{src}: entry {name} {fault}')


def check_new(dst: str | Path, suffixes: Collection[str] = SUFFIXES) -> None:
    """Whether a file can be written there.

    Raises:
        WeightsError: `dst` ends in none of the suffixes.
        FileExistsError: It is there already, be it as a link to nothing.
        NotADirectoryError: What should be its folder is none.
    """
    if Path(dst).suffix not in suffixes:
        raise WeightsError(f'{str(dst)!r} must end in {" or ".join(suffixes)}')
    if os.path.lexists(dst):
        raise FileExistsError(f'{dst} is there already: remove it or name another file')
    above = next(folder for folder in Path(dst).absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        raise NotADirectoryError(f'{dst} cannot be written, for {above} is no folder')


def save_weights(state: Mapping[str, Tensor], dst: str | Path) -> str:
    """Write tensors, and nothing else, to a new `.safetensors` or `.pth` file; returns its SHA-256.

    Raises: as `check_new`, and OSError where the disk refuses; then nothing is left at `dst`.
    """
    dst = Path(dst)
    check_new(dst)
    # Copies, because a slice would bring its whole storage along.
    state = OrderedDict((name, tensor.detach().cpu().contiguous().clone()) for name, tensor in state.items())
    content = _encode(state, dst.suffix)
    dst.parent.mkdir(parents=True, exist_ok=True)
    partial = dst.with_name(f'.{dst.name}.{os.getpid()}')
    try:
        with partial.open('xb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, dst)
    finally:
        partial.unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()


def publish(partial: Path, dst: Path) -> None:
    """Give the file its name, but take that of no other, even of one that has just come to be there."""
    try:
        os.link(partial, dst)
    except OSError:  # it is there, or the file system has no hard links
        check_new(dst, (dst.suffix,))
        partial.rename(dst)


def _encode(state: OrderedDict[str, Tensor], suffix: str) -> bytes:
    if suffix == '.safetensors':
        from safetensors.torch import save

        return save(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
