"""Which of several processes is the first, by what each launcher tells them."""

from __future__ import annotations

import pytest

from mmhcg.runs.processes import is_first

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
