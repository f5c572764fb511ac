"""The same numbers in less time and memory: nothing here is needed to know what HCGNet is."""

import torch

is_compiling = getattr(torch.compiler, 'is_compiling', lambda: False)  # PyTorch before 2.3 has none


def is_traced() -> bool:
    """By a compiler or a tracer, which want the plainest operators there are."""
    return is_compiling() or torch.jit.is_tracing()
