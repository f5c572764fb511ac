"""Two processes on the CPU train through tools/train.py."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from tiny_run import REPO, read_scalars, write_config, write_data

from mmhcg.runs import launch
from mmhcg.stack.checkpoints import load_checkpoint_file

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='each process would need a GPU of its own')
FAULTY = """
_base_ = 'tiny.py'
custom_hooks = {faults}
train_cfg = dict(max_epochs=4, val_interval=9)
"""


@pytest.mark.slow
def test_torchrun_trains_with_two_processes(tmp_path):
    environment = write_faulty(tmp_path)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    command += [str(REPO / 'tools/train.py'), *OPTIONS, '--cfg-options', 'train_cfg.max_epochs=1']
    command += ['train_cfg.val_interval=1']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [line for line in read_scalars(tmp_path / 'work') if 'loss' in line]
    assert len(steps) == 2  # 8 pictures, 2 processes, batches of 2
    assert (tmp_path / 'work/epoch_1.pth').is_file()
    assert 'coco/bbox_mAP' in read_scalars(tmp_path / 'work')[-1]
    check_threads(tmp_path / 'work', processes=2)


def write_faulty(folder: Path, *faults: dict) -> dict[str, str]:
    """faulty.py with hooks of faults.py, and shapes/; returns the environment in which it can be run."""
    write_config(folder)
    write_data(folder)
    hooks = [dict(type='faults.Signal', **fault) for fault in faults] + [dict(type='faults.Threads')]
    (folder / 'faulty.py').write_text(FAULTY.format(faults=hooks))
    paths = [str(REPO / 'tests'), os.environ.get('PYTHONPATH', '')]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths)), 'OMP_NUM_THREADS': '1'}


def check_threads(work_dir: Path, processes: int) -> None:
    """So many had no thread but the main one when Python ended, which may abort in those of a group."""
    if sys.platform == 'linux':
        threads = [path.read_text().splitlines() for path in work_dir.glob('*.threads')]
        assert sum(len(names) == 1 for names in threads) == processes, threads


def start_two(command: list[str], folder: Path, environment: dict[str, str]) -> list[subprocess.Popen]:
    """Two processes that know of each other, without a launcher that looks after them."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        address = dict(MASTER_ADDR='localhost', MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE='2')
    return [
        subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, **address, 'RANK': rank, 'LOCAL_RANK': rank},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in '01'
    ]


OPTIONS = [
    'faulty.py',
    '--launcher',
    'pytorch',
    '--no-pretrained',
    '--data-root',
    'shapes',
    '--work-dir',
    'work',
]


@pytest.mark.slow
def test_a_run_does_not_wait_for_a_process_that_died(tmp_path):
    """Without a launcher that looks after them: the other one ends with an error, and an epoch is saved."""
    environment = write_faulty(tmp_path, dict(name='SIGKILL', rank=1, iteration=3))
    command = [sys.executable, str(REPO / 'tools/train.py'), *OPTIONS]
    command += ['--cfg-options', 'env_cfg.dist_cfg.timeout=60']
    first, second = start_two(command, tmp_path, environment)
    second.communicate(timeout=200)
    assert second.returncode == -9
    _, message = first.communicate(timeout=100)
    assert first.returncode not in (0, -9)
    assert 'Error' in message
    assert load_checkpoint_file(tmp_path / 'work/epoch_1.pth')['meta']['iter'] == 2


@pytest.mark.slow
def test_in_validation_the_first_process_alone_stops_when_told(tmp_path):
    """The other one, told first, goes on, until it misses the first."""
    told = [dict(name='SIGUSR1', rank=1, val_iteration=0), dict(name='SIGUSR1', rank=0, val_iteration=1)]
    environment = write_faulty(tmp_path, *told)
    command = [sys.executable, str(REPO / 'tools/train.py'), *OPTIONS, '--cfg-options']
    command += ['train_cfg.val_interval=1', 'env_cfg.dist_cfg.timeout=60']
    first, second = start_two(command, tmp_path, environment)
    _, message = first.communicate(timeout=200)
    assert first.returncode == 75, message[-3000:]
    assert second.communicate(timeout=100) and second.returncode not in (0, 75)
    assert load_checkpoint_file(tmp_path / 'work/interrupted.pth')['meta']['iter'] == 2
    check_threads(tmp_path / 'work', processes=1)


@pytest.mark.slow
def test_torchrun_restarts_go_on(tmp_path):
    """First one process is told to stop, and both do; then one dies; each time both start and go on."""
    stop = dict(name='SIGUSR1', rank=1, iteration=2, restart=0)
    environment = write_faulty(tmp_path, stop, dict(name='SIGKILL', rank=1, iteration=5, restart=1))
    environment['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2']
    command += ['--max-restarts', '2', str(REPO / 'tools/train.py'), *OPTIONS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [path.read_text() for path in sorted((tmp_path / 'work').glob('*/*.log'))]
    starts = [re.findall(r'resumed epoch: (\d), iter: (\d)', log) for log in logs]
    assert starts == [[], [('1', '3')], [('2', '4')]]
    assert 'another process was told to stop: saved iteration 3' in logs[0]
    assert load_checkpoint_file(tmp_path / 'work/epoch_4.pth')['meta']['iter'] == 8
    check_threads(tmp_path / 'work', processes=4)  # two stopped, and two came to the end


@pytest.mark.parametrize(('configured', 'seconds'), [({}, launch.TIMEOUT), ({'timeout': 60}, 60)])
def test_processes_wait_for_each_other_no_longer_than_the_config_says(monkeypatch, configured, seconds):
    asked = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *_, timeout: asked.append(timeout))
    monkeypatch.setattr(launch.Runner, 'from_cfg', lambda cfg: cfg)
    cfg = launch._build_runner(Config(dict(launcher='pytorch', env_cfg=dict(dist_cfg=configured))))
    assert cfg.env_cfg.dist_cfg.timeout == asked[0].total_seconds() == seconds
