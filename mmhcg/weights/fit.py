"""Whether a checkpoint covers a network.

MMEngine only logs what does not fit, and continues with random weights.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import Module

from mmhcg.stack.checkpoints import CheckpointError
from mmhcg.weights.entries import FULL, HALF, form_fault, value_fault


def state_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights of a checkpoint by name, without the `module.` of DataParallel."""
    state = content.get('state_dict', content)
    return {str(name).removeprefix('module.'): entry for name, entry in state.items()}


def load_weights(source: str | Path, content: Mapping[str, Any], module: Module) -> None:
    """Load all of a module's weights from a checkpoint of it, or of the detector whose backbone it is.

    Raises:
        CheckpointError: As `check_fit`.
    """
    state = state_of(content)
    prefix = 'backbone' if _of_backbone(state) and not _of_backbone(module.state_dict()) else None
    # Counters that old files lack are set by BatchNorm itself
    module.load_state_dict(check_fit(source, state, module, prefix))


def check_fit(
    source: str | Path, content: Any, module: Module, prefix: str | None = None
) -> dict[str, Tensor]:
    """Check the entries of a checkpoint that a module is to get, which are found as MMEngine finds them.

    Floating-point numbers may have another precision than the module's, half included: many detectors are
    published in it, and to widen it is exact.

    Args:
        source: The file, for the message.
        content: What it holds: a state dict, or a dict with `state_dict`.
        module: On any device; its values do not matter.
        prefix: The part of the checkpoint that the module is to get, e.g. 'backbone'.

    Returns:
        These entries, by the names that they have in the module, `module.` of DataParallel left out.

    Raises:
        CheckpointError: Entries are missing, or others are in their place.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(
            f'checkpoint {source}: holds a {type(content).__name__} and no weights by name.'
        )
    start = f'{prefix.rstrip(".")}.' if prefix else 'module.'
    found = {
        str(name).removeprefix(start): entry
        for name, entry in state.items()
        if not prefix or str(name).startswith(start)
    }
    wanted = {name.removeprefix('module.'): like for name, like in module.state_dict().items()}
    faults = list(_faults(found, wanted))
    if faults:
        more = f', and {len(faults) - 1} more of {len(wanted)} entries' if len(faults) > 1 else ''
        raise CheckpointError(
            f'checkpoint {source}: does not fit {type(module).__name__}: {faults[0]}{more}. '
            f'{_advice({str(name) for name in state}, wanted, prefix)}'
        )
    return {name: found[name] for name in wanted if name in found}


def _faults(found: Mapping[str, Any], wanted: Mapping[str, Tensor]) -> Iterable[str]:
    for name, like in wanted.items():
        if name in found:
            dtypes = (*FULL, *HALF) if like.is_floating_point() else (like.dtype,)
            fault = form_fault(found[name], dtypes)
            if not fault and found[name].shape != like.shape:
                fault = f'has shape {tuple(found[name].shape)} instead of {tuple(like.shape)}'
            if fault := fault or value_fault(name, found[name]):
                yield f'{name} {fault}'
        elif not name.endswith('num_batches_tracked'):
            yield f'{name} is missing'
    # Weight and bias of a norm alone do not tell BatchNorm's from GroupNorm's.
    for name in found:
        norm, _, entry = name.rpartition('.')
        if entry == 'running_var' and f'{norm}.weight' in wanted and name not in wanted:
            yield f'{name} is of a BatchNorm, and the network has another norm there'


def _advice(names: Collection[str], wanted: Collection[str], prefix: str | None) -> str:
    """What to do about a file with these names."""
    if not prefix and _of_backbone(names) and not _of_backbone(wanted):
        return "It holds a whole model: add prefix='backbone.' to init_cfg."
    if not _of_backbone(names) and (set(wanted) if prefix else _of_backbone(wanted)) & set(names):
        return (
            "It holds a backbone alone: such weights go into the backbone's init_cfg=dict(type='Pretrained', "
            'checkpoint=FILE), without a prefix.'
        )
    return "Is it another model's, or one of the authors' files, which `mmhcg convert_checkpoint` converts?"


def _of_backbone(names: Iterable[str]) -> set[str]:
    """What a detector's backbone has of these names, as the backbone calls it."""
    return {name.removeprefix('backbone.') for name in names if name.startswith('backbone.')}
