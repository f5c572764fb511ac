"""One process of several: which it is, before MMEngine has brought them together, and its parting."""

from __future__ import annotations

import atexit
import gc
import os

from torch import distributed

from mmhcg.runs.errors import UserError

RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}  # by launcher
STARTERS = {'pytorch': 'torchrun', 'slurm': 'srun', 'mpi': 'mpirun'}


def is_first(launcher: str | None) -> bool:
    """Whether it is the first, or the only one."""
    return int(os.environ.get(RANKS.get(launcher or '', ''), 0)) == 0


def check_launcher(launcher: str) -> None:
    """Raises UserError where this process was not started by what the launcher stands for."""
    variable = RANKS.get(launcher)
    if variable and variable not in os.environ and not _in_group():
        raise UserError(
            f'--launcher {launcher}, and the variable {variable} is not set: start it with '
            f'{STARTERS[launcher]}, or leave out --launcher'
        )


def leave_group(alone: bool = False) -> None:
    """Leave the group and end its threads: if Python ends before them, it may abort and lose the exit code.

    They live as long as a model that was trained in the group, mostly in a Runner that is garbage by now and
    not collected.

    Args:
        alone: The others stay. NCCL, which may wait for them, is left as it is.
    """
    if _in_group() and not (alone and 'nccl' in distributed.get_backend_config()):
        distributed.destroy_process_group()
        atexit.register(gc.collect)


def _in_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()
