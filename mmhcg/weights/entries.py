"""What an entry of a checkpoint must be before anything is done with its numbers, whoever wrote the file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from mmhcg.weights.names import COUNTER

FULL = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)


def tensors_of(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in nested dicts, lists and tuples, once, with its dotted path.

    Handles arbitrarily deep nesting and repeated or cyclic references.
    """
    waiting, seen = [('', content)], set()
    while waiting:
        path, node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Tensor):
            yield path, node
        elif isinstance(node, (dict, list, tuple)):
            children = node.items() if isinstance(node, dict) else enumerate(node)
            below = [(f'{path}.{key}' if path else str(key), child) for key, child in children]
            waiting += reversed(below)


def form_fault(entry: object, dtypes: Collection[torch.dtype]) -> str | None:
    """Why this is no plain tensor of one of these types that stores what it claims; None where it is one.

    What it says is the end of a sentence. Values are not looked at, which some types do not support.
    """
    if not isinstance(entry, Tensor):
        return f'is no tensor ({type(entry).__name__})'
    if entry.is_nested or entry.layout != torch.strided or entry.is_meta:
        return 'is no plain tensor: it is nested, sparse or without data'
    if entry.dtype not in dtypes:
        return f'is of type {entry.dtype} instead of {" or ".join(map(str, dtypes))}'
    span = 1 + sum((size - 1) * stride for size, stride in zip(entry.shape, entry.stride()))
    if entry.numel() and entry.numel() > span:
        return f'claims {entry.numel()} elements and stores {span}'
    return None


def value_fault(name: str, entry: Tensor) -> str | None:
    """Why a network cannot use the numbers of the entry of this name; None where it can."""
    if not (entry.float() if entry.is_floating_point() else entry).isfinite().all():
        return 'holds NaN or infinity, or a number that float32 cannot hold'
    if name.endswith(('running_var', COUNTER)) and (entry < 0).any():
        return 'is negative, as no variance and no count can be'
    return None
