"""What SafeRunner makes of a checkpoint that cannot be written."""

from __future__ import annotations

import errno

import pytest
from mmengine.runner import Runner

from mmhcg.runs import UserError
from mmhcg.runs.safe_runner import SafeRunner


@pytest.mark.parametrize(
    ('error', 'expected', 'message'),
    [
        (OSError(errno.ENOSPC, 'No space', '/x/a.pth'), UserError, '/x/a.pth: No space. Earlier checkpoints'),
        (ConnectionResetError('by peer'), ConnectionResetError, 'by peer'),  # of no file that could be named
    ],
)
def test_only_files_that_cannot_be_written_are_the_users_to_mend(monkeypatch, error, expected, message):
    def fail(*args, **kwargs) -> None:
        raise error

    monkeypatch.setattr(Runner, 'save_checkpoint', fail)
    with pytest.raises(expected, match=message):
        object.__new__(SafeRunner).save_checkpoint('/x', 'a.pth')
