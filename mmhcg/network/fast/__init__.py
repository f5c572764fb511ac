"""The same numbers in less time and memory, by other formulas than those of `tests/plain.py`."""

import torch

is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # PyTorch before 2.3 has none


def is_traced() -> bool:
    """By a compiler or a tracer, which want the plainest operators there are."""
    return is_compiling() or torch.jit.is_tracing()
