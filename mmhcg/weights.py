"""The authors' checkpoints in our names, and weights written so that nothing half-written is ever seen.

The authors published two kinds of file with the same tensors in two layouts: the classification code's
(`features.hybridblock1.SMG1.conv1_1x1.norm.weight`) and, with a detector around it, the detection code's
(`backbone.hybridblock1.0.conv1_1x1.bn1.weight`). Both are read by name; nothing is matched by position.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmhcg.network import Trunk

# Classification layout -> detection layout. Modules count from 1 there and from 0 here.
_CLASSIFICATION = [
    (r'features\.conv(\d)\.', lambda m: f'stem{m[1]}.conv.'),
    (r'features\.norm([0-2])\.', lambda m: f'stem{m[1]}.bn1.'),
    (r'features\.norm\d\.', lambda m: 'bn1.'),
    (r'features\.[hH]ybrid[bB]lock(\d)\.SMG(\d+)\.', lambda m: f'hybridblock{m[1]}.{int(m[2]) - 1}.'),
    (r'features\.[tT]ransition(\d)\.', lambda m: f'transition{int(m[1]) + 1}.'),
]

# Inside an SMG, detection layout -> ours.
_SMG = {
    'conv1_1x1.bn1': 'conv1.norm',
    'conv1_1x1.conv': 'conv1.conv',
    'conv2_3x3.bn1': 'conv2.norm',
    'conv2_3x3.conv': 'conv2.conv',
    'conv_3x3.bn1': 'update.pool3.norm',
    'conv_3x3.conv': 'update.pool3.depthwise',
    'global_context3x3': 'update.pool3.project',
    'conv_5x5.bn1': 'update.pool5.norm',
    'conv_5x5.conv': 'update.pool5.depthwise',
    'global_context5x5': 'update.pool5.project',
    'fcall': 'update.squeeze',
    'bn_attention': 'update.norm',
    'fc3x3': 'update.expand3',
    'fc5x5': 'update.expand5',
    'global_forget_context': 'forget.pool.project',
    'fc1': 'forget.squeeze',
    'bn_forget': 'forget.norm',
    'fc2': 'forget.expand',
}
_LINEAR = re.compile(r'(squeeze|expand\d?)\.weight$')  # theirs are 1x1 convolutions
_COUNTER = '.num_batches_tracked'  # older files lack these


class WeightsError(ValueError):
    """A file that is not what it should be; the message names the file, the entry and the reason."""


@dataclass(frozen=True)
class Report:
    """What `convert_checkpoint` found.

    Attributes:
        arch: The variant, 'b' or 'c'.
        loaded: Entries of the file that the network takes.
        expected: Entries that the network has.
        left_over: Names of the file's entries that the backbone has no use for, the classifier's.
    """

    arch: str
    loaded: int
    expected: int
    left_over: tuple[str, ...]


def convert_checkpoint(src: str | Path) -> tuple[dict[str, Tensor], Report]:
    """Read an authors' classification file as the state dict of `Trunk` and of the backbone `HCGNet`.

    Counters `num_batches_tracked`, which older files lack, are then 0.

    Raises:
        WeightsError: An entry is missing, unknown, of a wrong shape or type, or not finite.
        mmhcg.stack.checkpoints.CheckpointError: The file cannot be read, or asks for code to be run.
    """
    from mmhcg.stack.checkpoints import load_checkpoint_file

    entries = _entries(src, load_checkpoint_file(src))
    left_over = tuple(name for name in entries if name.startswith('classifier.'))
    try:
        state = rename_backbone({name: tensor for name, tensor in entries.items() if name not in left_over})
    except ValueError as error:
        raise WeightsError(f'{src}: {error}') from None
    loaded = len(state)
    arch, wanted = _recognise(src, state)
    for name, like in wanted.items():
        if name not in state and name.endswith(_COUNTER):
            state[name] = torch.zeros_like(like, device='cpu')
        _check_entry(src, name, state.get(name), like)
    return {name: state[name] for name in wanted}, Report(arch, loaded, len(wanted), left_over)


def save_safetensors(state: Mapping[str, Tensor], dst: str | Path) -> str:
    """Write tensors to a new `.safetensors` file, at once or not at all; returns its SHA-256.

    Raises:
        FileExistsError: `dst` is there already.
    """
    from safetensors.torch import save

    dst = Path(dst)
    if dst.exists():
        raise FileExistsError(f'{dst} is there already: remove it or name another file')
    content = save({name: tensor.contiguous() for name, tensor in state.items()})
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=dst.parent, prefix=f'.{dst.name}.', delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are their owner's alone
            os.link(file.name, dst)  # unlike a rename, never replaces what came to be there meanwhile
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.rename(file.name, dst)
        finally:
            Path(file.name).unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()


def _entries(src: str | Path, content: object) -> dict[str, Tensor]:
    """The tensors by name, out of their container (`net`, `state_dict` or none) and without `module.`."""
    for key in ('net', 'state_dict'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f'{src} holds no state dict')
    entries = {str(name).removeprefix('module.'): tensor for name, tensor in content.items()}
    if len(entries) != len(content):
        raise WeightsError(f'{src} holds entries both with and without the prefix `module.`')
    for name, tensor in entries.items():
        if not isinstance(tensor, Tensor):
            raise WeightsError(f'{src}: entry {name} is no tensor but a {type(tensor).__name__}')
    return entries


def _recognise(src: str | Path, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The variant whose names these are, and the entries that it has (tensors without memory)."""
    names = {name for name in state if not name.endswith(_COUNTER)}
    faults = {}
    for arch in ('b', 'c'):  # the published files
        with torch.device('meta'):
            wanted = Trunk(arch).state_dict()
        differing = names ^ {name for name in wanted if not name.endswith(_COUNTER)}
        differing |= {name for name in names & wanted.keys() if state[name].shape != wanted[name].shape}
        differing |= state.keys() - wanted.keys()
        if not differing:
            return arch, wanted
        faults[arch] = sorted(differing)
    arch, fault = min(faults.items(), key=lambda item: len(item[1]))
    raise WeightsError(
        f'{src} fits no variant of HCGNet. The nearest is {arch!r}, from which {len(fault)} entries differ '
        f'by name or shape, in our names: {", ".join(fault[:3])}'
    )


def _check_entry(src: str | Path, name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.is_floating_point() != like.is_floating_point():
        raise WeightsError(f'{src}: {name} is of type {tensor.dtype} instead of {like.dtype}')
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise WeightsError(f'{src}: {name} holds NaN or infinity')


def rename_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the backbone's entries of an authors' file to those of `mmhcg.network.Trunk`.

    Args:
        state: Entries in the classification or the detection layout, without `module.` or `backbone.` prefix
            and without classifier or heads.

    Raises:
        ValueError: An entry has a name that neither layout knows, or two entries get the same name.
    """
    renamed = {}
    for key, name in _names(list(state)):
        if name in renamed:
            raise ValueError(f'two entries stand for {name}, one of them {key}')
        renamed[name] = state[key].flatten(1) if _LINEAR.search(name) else state[key]
    return renamed


def _names(keys: list[str]) -> Iterator[tuple[str, str]]:
    """Each key with its name here."""
    plain = {key: _detection_name(key) for key in keys}
    blocks = [int(match[1]) for name in plain.values() if (match := re.match(r'hybridblock(\d)\.', name))]
    for key, name in plain.items():
        ours = _our_name(name, last_stage=max(blocks, default=1) - 1)
        if ours is None:
            raise ValueError(
                f"no file of the authors' has an entry {key!r}; checkpoints of mmhcg need no conversion"
            )
        yield key, ours


def _detection_name(key: str) -> str:
    for pattern, replacement in _CLASSIFICATION:
        name, count = re.subn(f'^{pattern}', replacement, key)
        if count:
            return name.replace('.norm.', '.bn1.')
    return key


def _our_name(name: str, last_stage: int) -> str | None:
    if match := re.fullmatch(r'stem(\d)\.(conv|bn1)\.(\w+)', name):
        part = 'norm' if match[2] == 'bn1' else 'conv'
        return f'stem.{match[1]}.{part}.{match[3]}'
    if match := re.fullmatch(r'bn1\.(\w+)', name):
        return f'stages.{last_stage}.norm.{match[1]}'
    if match := re.fullmatch(r'transition(\d)\.conv1_1x1\.(bn1|conv)\.(\w+)', name):
        # The norm emits the stage before, so it is that stage's here.
        stage = int(match[1]) - 1
        place = f'{stage - 1}.norm' if match[2] == 'bn1' else f'{stage}.transition.conv1'
        return f'stages.{place}.{match[3]}'
    if match := re.fullmatch(
        r'(?:hybridblock(\d)\.(\d+)|transition(\d))\.(\w+(?:\.(?:bn1|conv))?)\.(\w+)', name
    ):
        block, module, transition, layer, entry = match.groups()
        if layer in _SMG:
            stage = int(block or transition) - 1
            place = f'block.{module}' if block else 'transition'
            return f'stages.{stage}.{place}.{_SMG[layer]}.{entry}'
    return None
