"""One process of several: which it is, before MMEngine has brought them together, and its parting."""

from __future__ import annotations

import os

from torch import distributed

from mmhcg.runs.errors import UserError

RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}  # by launcher


def is_first(launcher: str | None) -> bool:
    """Whether it is the first, or the only one."""
    return int(os.environ.get(RANKS.get(launcher or '', ''), 0)) == 0


def check_launcher(launcher: str) -> None:
    """Raises UserError where the process was not started by the launcher, which tells each its rank."""
    rank = RANKS.get(launcher)
    if rank and rank not in os.environ:
        starter = {'pytorch': 'torchrun', 'slurm': 'srun', 'mpi': 'mpirun'}[launcher]
        raise UserError(f'--launcher {launcher}, but {rank} is not set: start it with {starter}')


def leave_group() -> None:
    """Leave the group, when all processes do: an exit with the group's threads running may end in a crash."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
