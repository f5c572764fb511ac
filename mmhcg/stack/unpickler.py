"""What PyTorch's safe loading lacks: `safe_globals` before 2.5, and in 2.1 a look at the size of storages."""

import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
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

    steps: Any = pickle._Unpickler  # the one in Python, whose steps can be overridden

    class Unpickler(steps):
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
        **{code: step for code, step in steps.dispatch.items() if bytes([code]) not in unused},
        pickle.REDUCE[0]: Unpickler.load_reduce,
        pickle.NEWOBJ[0]: Unpickler.load_newobj,
        pickle.BUILD[0]: Unpickler.load_build,
    }

    def load(file: BinaryIO, **kwargs: Any) -> Any:
        return Unpickler(file, **kwargs).load()

    return SimpleNamespace(__name__='restricted_pickle', Unpickler=Unpickler, load=load)


class _StandIn(dict):
    """Whatever a pickle names or makes, which has only to bear what the unpickler does to it."""

    def __hash__(self) -> int:  # type: ignore[override]  # as a key of a dict
        return id(self)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def accept(self, *args: Any) -> Any:
        return self

    __call__ = __setstate__ = append = extend = add = accept


class _StorageReader(pickle.Unpickler):
    """Notes the storages that the pickle of a checkpoint asks for, and calls nothing that it names."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> type:
        return type(name, (_StandIn,), {})

    def persistent_load(self, claim: tuple) -> _StandIn:
        _, kind, key, _, numel = claim  # as torch.save writes it
        with warnings.catch_warnings():  # of classes that files name whether they are deprecated or not
            warnings.simplefilter('ignore')
            dtype = getattr(
                getattr(torch, kind.__name__), 'dtype', torch.uint8
            )  # UntypedStorage counts bytes
        self.sizes[key] = max(numel * dtype.itemsize, self.sizes.get(key, 0))
        return _StandIn()


def claimed_bytes(pickled: bytes) -> dict[str, int]:
    """The bytes that the pickle of a checkpoint claims of each storage, by the storage's key."""
    reader = _StorageReader(BytesIO(pickled))
    reader.load()
    return reader.sizes
