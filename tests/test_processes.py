"""Which of several processes is the first, by what each launcher tells them, and who needs no launcher."""

from __future__ import annotations

import pytest
from torch import distributed

from mmhcg.runs import UserError
from mmhcg.runs.processes import check_launcher, is_first, leave_group

RANKS = {'pytorch': 'RANK', 'slurm': 'SLURM_PROCID', 'mpi': 'OMPI_COMM_WORLD_RANK'}


@pytest.mark.parametrize('launcher', RANKS)
def test_the_launchers_own_number_counts_and_no_other(monkeypatch, launcher):
    for name in RANKS.values():
        monkeypatch.setenv(name, '1')
    assert not is_first(launcher)
    assert is_first('none') and is_first(None)  # started inside a job, by hand
    monkeypatch.setenv(RANKS[launcher], '0')
    assert is_first(launcher)
    monkeypatch.delenv(RANKS[launcher])
    assert is_first(launcher)


@pytest.mark.parametrize('launcher', RANKS)
def test_processes_that_are_together_already_need_no_variable(monkeypatch, launcher):
    """As where a notebook or another library has started them."""
    monkeypatch.delenv(RANKS[launcher], raising=False)
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        check_launcher(launcher)
    finally:
        leave_group()
    with pytest.raises(UserError, match=f'the variable {RANKS[launcher]} is not set'):
        check_launcher(launcher)
