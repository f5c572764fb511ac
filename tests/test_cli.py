"""How the tools end: a message of one line, and an exit code for who starts them."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest
from tiny_run import REPO
from torch import distributed

from mmhcg.installation import DOCTOR
from mmhcg.runs import UserError, cli
from mmhcg.runs.config import load_config
from mmhcg.runs.errors import DivergedError, importing
from mmhcg.runs.processes import leave_group
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


@pytest.mark.parametrize('backend', ['cpu:gloo', 'cpu:gloo,cuda:nccl'])
def test_an_error_of_one_of_several_processes_leaves_their_group_unless_it_may_wait(monkeypatch, backend):
    def fail() -> None:
        raise DivergedError('loss is nan')

    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(distributed, 'get_backend_config', lambda: backend)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.run(fail, argparse.ArgumentParser(), [])
        assert stop.value.code == 3
        assert distributed.is_initialized() == ('nccl' in backend)
    finally:
        leave_group()


@pytest.mark.parametrize('module', ['mmdet', 'mmdet.models'])  # the latter needs torchvision
def test_where_mmdetection_cannot_be_imported_the_doctor_is_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf'^MMDetection cannot .*\(ModuleNotFoundError: .*\): {DOCTOR}$'):
        load_config({})


@pytest.mark.parametrize('error', [AssertionError('MMCV==2.2.0 is used'), RuntimeError('no nms')])
def test_so_it_is_for_versions_that_do_not_fit(error):
    message = rf'\({type(error).__name__}: {error}\): {DOCTOR}$'
    with pytest.raises(UserError, match=message), importing():
        raise error


@pytest.mark.slow
@pytest.mark.parametrize('tool', ['train', 'check_data', 'convert_checkpoint'])
def test_without_mmengine_the_tools_name_the_doctor(tool):
    code = "import runpy, sys; sys.modules['mmengine'] = None; runpy.run_path(sys.argv[1], None, '__main__')"
    command = [sys.executable, '-c', code, str(REPO / 'tools' / f'{tool}.py')]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.endswith(f'{DOCTOR}\n')
