"""What the tools are given on the command line is looked at before work starts."""

from __future__ import annotations

import argparse
import os

import pytest
from tiny_run import CONFIGS, load_tool

from mmhcg import runs
from mmhcg.runs import UserError, cli, train
from mmhcg.runs.errors import DivergedError, check_destination

CONFIG = CONFIGS / 'mask_rcnn_hcgnet_demo_shapes.py'


@pytest.mark.parametrize('option', ['resume', 'work_dir', 'data_root'])
def test_an_empty_value_is_no_default(option):
    with pytest.raises(UserError, match=f'--{option.replace("_", "-")} is empty'):
        train(CONFIG, **{option: ''})
    if option != 'resume':
        with pytest.raises(UserError, match='is empty'):
            runs.test(CONFIG, 'x.pth', **{option: ''})


@pytest.mark.parametrize('seed', [-1, 2**32])
def test_seeds_are_those_of_numpy(seed):
    with pytest.raises(UserError, match=f'--seed {seed}: NumPy takes 0 to 4294967295'):
        train(CONFIG, seed=seed)


@pytest.mark.parametrize(
    ('launcher', 'starter'), [('pytorch', 'torchrun'), ('slurm', 'srun'), ('mpi', 'mpirun')]
)
def test_a_launcher_must_have_started_the_process(launcher, starter, monkeypatch):
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=f'start it with {starter}'):
        train(CONFIG, launcher=launcher)


def test_predictions_must_have_a_place_before_they_are_made(tmp_path):
    (tmp_path / 'folder.pkl').mkdir()
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='is a folder'):
        runs.test(CONFIG, 'x.pth', out=tmp_path / 'folder.pkl')
    with pytest.raises(UserError, match='file is no folder'):
        runs.test(CONFIG, 'x.pth', out=tmp_path / 'file' / 'x.pkl')
    with pytest.raises(UserError, match='is no folder'):
        runs.test(CONFIG, 'x.pth', show_dir=tmp_path / 'file')


def test_destinations_that_will_do(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    check_destination('--out', tmp_path / 'file')
    check_destination('--out', tmp_path / 'new' / 'folder' / 'file')
    check_destination('--out', tmp_path, is_folder=True)
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(UserError, match='must not be written to'):
        check_destination('--out', tmp_path / 'new')


def fail(error):
    raise error


@pytest.mark.parametrize(
    ('error', 'code', 'message'),
    [
        (UserError('what to do'), 2, 'error: what to do\n'),
        (DivergedError('what is NaN'), 3, 'error: what is NaN\n'),
        (NotADirectoryError(20, 'Not a directory', 'x/y'), 2, 'error: x/y: Not a directory\n'),
    ],
)
def test_errors_end_with_a_message_and_a_code(error, code, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: fail(error), argparse.ArgumentParser(), [])
    assert (end.value.code, capsys.readouterr().err) == (code, message)


def test_errors_that_name_no_file_are_faults():
    with pytest.raises(OSError, match='of no file'):
        cli.run(lambda: fail(OSError('of no file')), argparse.ArgumentParser(), [])


@pytest.mark.parametrize(
    ('tool', 'argv'),
    [
        ('demo', ['--seed', '-1', '--work-dir', 'nowhere']),
        ('demo', ['--work-dir', __file__]),
        ('make_shapes', ['nowhere', '--images', '0', '--seed', '0']),
        ('make_cifar', ['nowhere.npz', 'nowhere']),
        ('visualize', [str(CONFIG), 'x.pth', 'x.jpg', '--out', 'nowhere', '--score-thr', 'nan']),
    ],
)
def test_every_tool_ends_with_2(tool, argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        load_tool(tool).main(argv)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith('error: ')
    assert os.listdir(tmp_path) == []
