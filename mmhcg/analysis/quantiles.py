"""A quantile of more numbers than fit into memory."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-30  # width of the bins while a row has held one value only


class StreamingQuantiles:
    """A quantile of each of C rows of numbers that come in pieces, by histograms whose range grows.

    A row's bins are equally wide. Where a number lies beyond them, pairs of bins become one, exactly, until
    the range holds it: so it is at most four times that of the numbers (twice where it grows to one side).
    Memory: 8 bytes x C x bins, however many numbers there are.
    """

    def __init__(self, rows: int, bins: int = 4096, device: torch.device | str = 'cpu') -> None:
        self.counts = torch.zeros(rows, bins, dtype=torch.long, device=device)
        self.low = torch.zeros(rows, dtype=torch.double, device=device)
        self.width = torch.full_like(self.low, SMALLEST)  # of a bin
        self.minimum = torch.full_like(self.low, torch.inf)
        self.total = 0

    def add(self, numbers: Tensor) -> None:
        """Count finite numbers (C, n)."""
        numbers = numbers.double()
        low, high = numbers.aminmax(dim=1)
        self.minimum = self.minimum.minimum(low)
        bins = self.counts.shape[1]
        if not self.total:
            self.low, self.width = low, ((high - low) / bins).clamp(min=SMALLEST)
        while (below := low < self.low).any():
            self._double(below, downwards=True)
        while (above := high > self.low + bins * self.width).any():
            self._double(above, downwards=False)
        # A number on the edge between two bins is of the lower one, so that it is above where that begins.
        index = ((numbers - self.low[:, None]) / self.width[:, None]).ceil().long() - 1
        index = index.clamp(0, bins - 1)
        self.counts.scatter_add_(1, index, torch.ones_like(index))
        self.total += numbers.shape[1]

    def _double(self, rows: Tensor, downwards: bool) -> None:
        pairs = self.counts[rows].unflatten(1, (-1, 2)).sum(2)
        empty = torch.zeros_like(pairs)
        self.counts[rows] = torch.cat([empty, pairs] if downwards else [pairs, empty], 1)
        if downwards:
            self.low[rows] -= self.counts.shape[1] * self.width[rows]
        self.width[rows] *= 2

    def quantile(self, q: float) -> Tensor:
        """Where the bin of each row's q-quantile begins, float64 (C,).

        The quantile is the number of rank `floor(q * (n - 1))` in order of size, from 0. It is larger than
        the answer, by `4 * (maximum - minimum) / bins` of the row at most, unless it is the row's minimum:
        then it is equal. So `number > answer` holds for the quantile and all above it, and not for the
        zeros of a unit that is silent.
        """
        rank = int(q * (self.total - 1))
        return (self.low + self.width * (self.counts.cumsum(1) <= rank).sum(1)).maximum(self.minimum)
