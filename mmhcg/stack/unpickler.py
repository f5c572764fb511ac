"""`torch.serialization.safe_globals`, also for PyTorch before 2.5, which lacks it."""

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch._weights_only_unpickler import _get_allowed_globals


@contextmanager
def safe_globals(objects: Sequence[Any]) -> Iterator[None]:
    """Within it, `torch.load(..., weights_only=True)` accepts the functions and classes `objects` as well.

    Each by the name that its `__module__` and `__qualname__` give.
    """
    if hasattr(torch.serialization, 'safe_globals'):
        with torch.serialization.safe_globals(list(objects)):
            yield
        return
    # The least bad way on PyTorch 2.1 to 2.4. The unpickler of 2.1 makes no instances but of Parameter, so
    # that a longer list would not do. torch.load finds it by this attribute, which will stay, as no more of
    # these releases will come; were it gone, torch.load would use the strict one, and fail but stay safe.
    strict = torch.serialization._weights_only_unpickler
    torch.serialization._weights_only_unpickler = restricted_pickle(objects)
    try:
        yield
    finally:
        torch.serialization._weights_only_unpickler = strict


def restricted_pickle(objects: Sequence[Any]) -> SimpleNamespace:
    """What `torch.load` wants of a pickle module, for PyTorch's own list of globals and `objects`."""
    allowed = {f'{item.__module__}.{item.__qualname__}': item for item in objects}
    allowed.update(_get_allowed_globals())

    def check(function: Any) -> None:
        """Only what is listed is called or filled: neither results of calls, nor the classes themselves."""
        if not any(function is item for item in allowed.values()):
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {function}')

    class Unpickler(pickle._Unpickler):  # the one in Python, whose steps can be overridden
        def find_class(self, module: str, name: str) -> Any:
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')
            return allowed[f'{module}.{name}']

        def load_reduce(self) -> None:
            check(self.stack[-2])
            super().load_reduce()

        def load_newobj(self) -> None:
            check(self.stack[-2])
            super().load_newobj()

        def load_build(self) -> None:
            check(type(self.stack[-2]))
            super().load_build()

    # the other instructions that call something; torch.save never writes them
    unused = (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4)
    Unpickler.dispatch = {
        **{code: step for code, step in pickle._Unpickler.dispatch.items() if bytes([code]) not in unused},
        pickle.REDUCE[0]: Unpickler.load_reduce,
        pickle.NEWOBJ[0]: Unpickler.load_newobj,
        pickle.BUILD[0]: Unpickler.load_build,
    }

    def load(file: BinaryIO, **kwargs: Any) -> Any:
        return Unpickler(file, **kwargs).load()

    return SimpleNamespace(__name__='restricted_pickle', Unpickler=Unpickler, load=load)
