"""Which of several processes this one is, before MMEngine has brought them together."""

from __future__ import annotations

import os

RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}  # by launcher


def is_first(launcher: str | None) -> bool:
    """Whether it is the first, or the only one."""
    return int(os.environ.get(RANKS.get(launcher, ''), 0)) == 0
