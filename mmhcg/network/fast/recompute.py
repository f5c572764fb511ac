"""Maps that are computed once more for the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmhcg.network.fast import is_compiling


def recompute(module: nn.Module, function: Callable[..., Any], *maps: Tensor) -> Any:
    """`function(*maps)`, a part of `module`, which keeps nothing but the maps for the backward pass.

    The backward pass runs it again only up to the last tensor that it needs, so a final convolution is not
    repeated. Where norms learn, compilers keep what they see fit: they would count running statistics twice.
    """
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (*maps, *module.parameters()))):
        return function(*maps)
    if not any(m.training and m._buffers for m in module.modules()):
        return checkpoint(function, *maps, use_reentrant=False, preserve_rng_state=False)
    if is_compiling():
        return function(*maps)
    return checkpoint(
        function,
        *maps,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _kept_statistics(module)),
    )


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: running a function once more must not count a batch twice."""
    kept = [(buffer, buffer.clone()) for m in module.modules() if m.training for buffer in m.buffers(False)]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)  # .data, because the backward pass has saved the buffer
