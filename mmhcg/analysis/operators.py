"""What a step of a network costs in numbers that do not vary: operators, bytes moved, bytes kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmhcg.network.fast.kernels.source import observers


class OperatorCounter(TorchDispatchMode):
    """Counts what PyTorch runs while it is entered.

    Views and allocations are left out, since they touch no element of a map. Launches of HCGNet's own kernels
    are operators.

    Attributes:
        calls: Operators that ran.
        moved: Bytes of the tensors that they took in and put out. What is changed in place counts twice, as
            it is read and written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.moved = 0

    def __enter__(self) -> OperatorCounter:
        observers.append(self._count)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        observers.remove(self._count)
        super().__exit__(*error)

    def _count(self, *trees: Any) -> None:
        self.calls += 1
        self.moved += sum(tensor.nbytes for tensor in _tensors(trees))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        taken = _tensors((args, {name: arg for name, arg in (kwargs or {}).items() if name != 'out'}))
        put = _tensors(out)
        is_view = func.is_view or (
            not func._schema.is_mutable and {*map(_place, put)} <= {*map(_place, taken)}
        )
        if put and not is_view and not func.name().startswith('aten::empty'):
            self._count(taken, put)
        return out


def saved_bytes(function: Callable[[], Any], parameters: Iterable[nn.Parameter]) -> tuple[int, Any]:
    """Bytes that a forward pass keeps for the backward pass, each storage once, and what `function` returns.

    Parameters are left out: they are there anyway.
    """
    own = {_place(parameter) for parameter in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()
    return sum(kept.values()), out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
