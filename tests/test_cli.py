"""How the tools end: a message of one line, and an exit code for who starts them."""

from __future__ import annotations

import argparse

import pytest

from mmhcg.runs import UserError, cli
from mmhcg.runs.errors import DivergedError
from mmhcg.stack.checkpoints import CheckpointError
from mmhcg.weights import WeightsError


@pytest.mark.parametrize(
    ('kind', 'code'), [(UserError, 2), (DivergedError, 3), (CheckpointError, 2), (WeightsError, 2)]
)
def test_what_the_user_can_mend_is_a_message_and_an_exit_code(monkeypatch, capsys, kind, code):
    monkeypatch.setenv('LOCAL_RANK', '0')

    def fail(depth: int) -> None:
        raise kind(f'too deep: {depth}')

    parser = argparse.ArgumentParser()
    parser.add_argument('--depth', type=int)
    with pytest.raises(SystemExit) as stop:
        cli.run(fail, parser, ['--depth', '3'])
    assert stop.value.code == code
    assert capsys.readouterr().err == 'error: too deep: 3\n'
