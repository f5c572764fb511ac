"""What `--resume` takes when the work dir is not as it should be, and who else may use that work dir."""

from __future__ import annotations

import itertools
import os
import pickletools
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.registry import MODEL_WRAPPERS
from tiny_run import CONFIGS, REPO, load_tool, newest_log, steps, train, write_config, write_data
from tiny_training import tiny_runner
from torch.utils.data import DataLoader

from mmhcg.runs import UserError
from mmhcg.runs.loading import check_loading
from mmhcg.runs.lock import sole_run
from mmhcg.runs.resumable import ResumableLoader
from mmhcg.runs.resuming import newest_checkpoint, settle_start
from mmhcg.runs.run_state import set_random_state
from mmhcg.stack.checkpoints import load_checkpoint_file

DATA = Path(__file__).parent / 'data'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A folder with tiny.py, shapes/ and `work`, where three epochs were trained."""
    folder = tmp_path_factory.mktemp('resuming')
    write_config(folder)
    write_data(folder)
    options = ['train_cfg.max_epochs=3', 'train_cfg.val_interval=9']
    assert train(folder, 'work', '--cfg-options', *options) == 0
    return folder


def missing(work_dir: Path) -> None:
    (work_dir / 'last_checkpoint').unlink()


def empty(work_dir: Path) -> None:
    (work_dir / 'last_checkpoint').write_text('')


def deleted(work_dir: Path) -> None:
    (work_dir / 'epoch_3.pth').unlink()


def torn(work_dir: Path) -> None:
    path = work_dir / 'epoch_3.pth'
    path.write_bytes(path.read_bytes()[:-1000])


def of_zeros(work_dir: Path) -> None:
    path = work_dir / 'epoch_3.pth'
    path.write_bytes(bytes(path.stat().st_size))  # as file systems leave it when the power fails


def without_state(work_dir: Path) -> None:
    weights = load_checkpoint_file(work_dir / 'epoch_3.pth')['state_dict']
    torch.save({'state_dict': weights}, work_dir / 'epoch_3.pth')


# what is wrong -> the checkpoint that is taken, and why not another
WORK_DIRS = {
    missing: ('epoch_3.pth', 'last_checkpoint is missing'),
    empty: ('epoch_3.pth', 'last_checkpoint is empty'),
    deleted: ('epoch_2.pth', 'passed over: no checkpoint at .*epoch_3.pth'),
    torn: ('epoch_2.pth', 'passed over: checkpoint .*epoch_3.pth: the end of the file is missing'),
    of_zeros: ('epoch_2.pth', 'passed over: checkpoint .*epoch_3.pth: cannot be loaded'),
    without_state: ('epoch_2.pth', 'passed over: cannot resume from .*epoch_3.pth: it has no meta'),
}


@pytest.mark.slow
@pytest.mark.parametrize('damage', WORK_DIRS, ids=lambda damage: damage.__name__)
def test_the_newest_whole_checkpoint_is_taken_and_named(folder, tmp_path, damage):
    work_dir = tmp_path / 'work'
    shutil.copytree(folder / 'work', work_dir)
    for number in (1, 2, 3):
        os.utime(work_dir / f'epoch_{number}.pth', (number, number))
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_3.pth'))
    damage(work_dir)
    expected, reason = WORK_DIRS[damage]
    options = ['--cfg-options', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=9']
    assert train(folder, str(work_dir), '--resume', *options) == 0
    log = newest_log(work_dir)
    assert re.search(rf'WARNING - .*{reason}', log)
    assert f'resuming from {work_dir / expected}, the newest checkpoint that is whole' in log
    assert steps(work_dir)[0] == {'epoch_3.pth': 10, 'epoch_2.pth': 7}[expected]


@pytest.fixture
def saved(tmp_path) -> Path:
    """A work dir as a run leaves it, without running one."""
    shutil.copy(DATA / 'pytorch_2_1.pth', tmp_path / 'epoch_2.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    return tmp_path


def test_a_whole_checkpoint_is_resumed_without_a_word(saved):
    start = newest_checkpoint(str(saved))
    assert (start.load_from, start.notes) == (str(saved / 'epoch_2.pth'), [])


def test_nothing_whole_stops_the_run(tiny, tmp_path, capsys):
    """Also where the config says `resume`, for which MMEngine starts afresh without a word."""
    (tmp_path / 'epoch_1.pth').write_bytes(b'x')
    for options in (['--resume'], ['--cfg-options', 'resume=True']):
        assert train(tiny, str(tmp_path), *options) == 2
        message = capsys.readouterr().err
        assert f'nothing to resume: no usable checkpoint in {tmp_path}' in message
        assert 'epoch_1.pth: is a text file, not a checkpoint' in message
    assert [path.name for path in tmp_path.iterdir()] == ['epoch_1.pth']


@pytest.mark.parametrize('name', ['epoch_3.pth', 'iter_9.pth', 'last_checkpoint'])
def test_a_fresh_start_overwrites_no_earlier_run(tiny, tmp_path, capsys, name):
    (tmp_path / name).write_bytes(b'of days of work')
    assert train(tiny, str(tmp_path)) == 2
    assert f'{tmp_path} holds the checkpoints of an earlier run ({name})' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_remote_checkpoint_is_resumed_as_the_pointer_names_it(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/epoch_2.pth')
    assert newest_checkpoint(str(tmp_path)).load_from == 's3://bucket/epoch_2.pth'


def test_links_to_files_that_are_gone_are_passed_over(saved):
    (saved / 'last_checkpoint').unlink()
    (saved / 'epoch_9.pth').symlink_to(saved / 'gone')
    assert newest_checkpoint(str(saved)).load_from == str(saved / 'epoch_2.pth')


def test_weights_of_a_model_in_ddp_are_the_models(tmp_path):
    """`load_from` in several processes: the Runner has wrapped the model when the file is looked at."""

    class Wrapper(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

    MODEL_WRAPPERS.register_module(name='TestWrapper', module=Wrapper, force=True)
    path = tmp_path / 'weights.pth'
    model = torch.nn.Linear(2, 3)
    torch.save(model.state_dict(), path)
    runner, content = SimpleNamespace(model=Wrapper(model)), load_checkpoint_file(path)
    cfg = Config(dict(load_from=str(path), resume=False, model=dict(type='Linear')))
    check_loading(cfg, content, runner)
    with pytest.raises(
        UserError, match=r"none of its names is the model's, e\.g\. 'other' instead of 'weight'"
    ):
        check_loading(cfg, {'other': content['weight']}, runner)


@pytest.mark.parametrize('key', ['exp_avg', 'exp_avg_sq'])
def test_averages_of_another_shape_are_not_resumed(tmp_path, key):
    """Adam would stop at them in the first iteration."""
    path = DATA / 'pytorch_2_1.pth'
    runner, content = tiny_runner(tmp_path, epochs=3, resume=path), load_checkpoint_file(path)
    cfg = Config(dict(load_from=str(path), resume=True))
    check_loading(cfg, content, runner)
    content['optimizer']['state'][0][key] = torch.zeros(7)
    with pytest.raises(UserError, match=rf'\({key} of shape \(7,\) for a weight of \(2, 2\)\)'):
        check_loading(cfg, content, runner)


@pytest.mark.slow
def test_a_restart_before_the_first_checkpoint_starts_afresh(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '1')
    options = ['--cfg-options', 'train_cfg.max_epochs=1']
    assert train(folder, str(tmp_path), *options) == 0
    assert steps(tmp_path)[0] == 1
    log = newest_log(tmp_path)
    assert 'restarted before the first checkpoint was saved: starting from scratch' in log
    assert 'set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1' in log


@pytest.mark.parametrize('load_from', [None, str(DATA / 'pytorch_2_1.pth')], ids=['afresh', 'from weights'])
@pytest.mark.parametrize('name', ['TORCHELASTIC_RESTART_COUNT', 'SLURM_RESTART_COUNT'])
def test_a_run_that_was_started_again_resumes_by_itself(saved, monkeypatch, name, load_from):
    """The same command once more: what the run has saved goes before what it started from."""
    with pytest.raises(UserError, match='holds the checkpoints of an earlier run'):
        settle_start(False, load_from, str(saved))
    monkeypatch.setenv(name, '1')
    start = settle_start(False, load_from, str(saved))
    assert start.resume and start.load_from == str(saved / 'epoch_2.pth')


@pytest.mark.slow
def test_the_seed_is_that_of_the_resumed_run(folder, tmp_path):
    shutil.copy(folder / 'work/epoch_2.pth', tmp_path)
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    options = ['--cfg-options', 'train_cfg.val_interval=9', 'train_cfg.max_epochs=3']
    assert train(folder, str(tmp_path), '--resume', '--seed', '8', *options) == 0
    assert f'the seed is 3, that of {tmp_path / "epoch_2.pth"}, not 8' in newest_log(tmp_path)
    resumed, straight = (
        load_checkpoint_file(place / 'epoch_3.pth')['state_dict'] for place in (tmp_path, folder / 'work')
    )
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)


@pytest.mark.parametrize('workers', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_loader_passes_over_what_was_seen(workers):
    """In samplers that end and in those that never do; the next pass is a whole one."""
    options = dict(batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    endless = ResumableLoader.of(DataLoader(range(8), sampler=InfiniteSampler(range(8), seed=1), **options))
    whole = list(
        itertools.islice(DataLoader(range(8), sampler=InfiniteSampler(range(8), seed=1), batch_size=2), 9)
    )
    batches = iter(endless)  # as MMEngine does when it builds a loop
    endless.seen = 6
    assert [next(batches) for _ in range(6)] == [None] * 6
    assert [next(batches).tolist() for _ in range(3)] == [batch.tolist() for batch in whole[6:]]
    loader = ResumableLoader.of(DataLoader(range(8), **options))
    loader.seen = 3
    assert [batch if batch is None else batch.tolist() for batch in loader] == [None] * 3 + [[6, 7]]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    loader.seen = 5  # more than a pass, as in loops over iterations
    assert list(loader) == [None] * 4
    assert [batch if batch is None else batch.tolist() for batch in loader] == [None, [2, 3], [4, 5], [6, 7]]


@pytest.mark.slow
def test_persistent_workers_end_with_their_process():
    """Python ends them by SIGTERM at its exit, and waits for them."""
    code = (
        'from torch.utils.data import DataLoader\n'
        'from mmhcg.runs.resumable import ResumableLoader\n'
        'loader = ResumableLoader.of(DataLoader(range(8), num_workers=2, persistent_workers=True))\n'
        'print(len(list(loader)))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, '8\n'), done.stderr


# Two runs, one work dir


@pytest.mark.slow
def test_a_second_run_in_the_same_work_dir_is_refused(folder, capsys):
    """Before it writes anything; a killed run leaves no lock behind, and testing is no second run."""
    options = ['--no-pretrained', '--data-root', 'shapes', '--work-dir', 'shared']
    command = [sys.executable, str(REPO / 'tools/train.py'), 'tiny.py', *options, '--cfg-options']
    command += ['train_cfg.max_epochs=1000', 'train_cfg.val_interval=1000']
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as first:
        assert any('Saving checkpoint' in line for line in first.stdout)
        checkpoint = folder / 'shared/epoch_1.pth'
        while not checkpoint.exists():
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # so that what changes is the second run's doing
        before = {path: path.stat().st_mtime_ns for path in (folder / 'shared').rglob('*')}
        assert train(folder, 'shared') == train(folder, 'shared', '--resume') == 2
        assert f'another run trains in {folder}/shared (process {first.pid} on' in capsys.readouterr().err
        assert {path: path.stat().st_mtime_ns for path in (folder / 'shared').rglob('*')} == before
        argv = [folder / 'tiny.py', checkpoint, '--data-root', folder / 'shapes']
        load_tool('test').main([str(arg) for arg in [*argv, '--work-dir', folder / 'shared']])
        first.kill()
    assert train(folder, 'shared', '--resume', '--cfg-options', 'train_cfg.max_epochs=1') == 0


def test_a_run_may_use_a_work_dir_again(tmp_path):
    with sole_run(str(tmp_path)), sole_run(str(tmp_path / '.')):
        pass
    with sole_run(str(tmp_path)):
        pass
    with pytest.raises(UserError), sole_run(str(tmp_path)):
        raise UserError('of the run')
    with sole_run(str(tmp_path)):
        pass


# Other tools and other versions


def test_one_base_line_brings_it_to_any_config(tiny, tmp_path):
    """With MMEngine's own runner builder, as MMDetection's tools use it; what the config sets stays."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import IterBasedTrainLoop

    from mmhcg.runs.checkpoint_hook import SafeCheckpointHook
    from mmhcg.runs.preemption import PreemptionHook

    (tmp_path / 'mine.py').write_text(
        f'_base_ = [{str(tiny / "tiny.py")!r}, {str(CONFIGS / "_base_/safe_run.py")!r}]\n'
        "custom_hooks = [dict(type='mmhcg.PreemptionHook', signals=['SIGUSR2'])]\n"
    )
    cfg = Config.fromfile(tmp_path / 'mine.py')
    cfg.work_dir, cfg.resume, cfg.load_from = str(tmp_path / 'work'), True, None
    cfg.default_hooks.checkpoint.max_keep_ckpts = 5
    runner = RUNNERS.build(cfg)
    assert type(runner).__name__ == 'SafeRunner'
    (checkpoint,) = (hook for hook in runner.hooks if hasattr(hook, 'max_keep_ckpts'))
    assert (type(checkpoint), checkpoint.max_keep_ckpts) == (SafeCheckpointHook, 5)
    (preemption,) = (hook for hook in runner.hooks if isinstance(hook, PreemptionHook))
    assert preemption.signals == [signal.SIGUSR2]
    assert type(runner.build_train_loop(IterBasedTrainLoop.__new__(IterBasedTrainLoop))) is IterBasedTrainLoop
    with pytest.raises(UserError, match='nothing to resume'):
        runner.train()


def names_in(path: Path) -> set[str]:
    """Functions and classes that a checkpoint asks its reader for, those of NumPy as NumPy 1 calls them."""
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith('data.pkl')))
    names = {argument for code, argument, _ in pickletools.genops(pickled) if code.name == 'GLOBAL'}
    return {name.replace('numpy._core', 'numpy.core') for name in names}


@pytest.mark.slow
def test_training_goes_on_from_a_checkpoint_of_pytorch_2_1(tmp_path):
    """And checkpoints of today name nothing that is not in it, for the way back."""
    old = DATA / 'pytorch_2_1.pth'
    runner = tiny_runner(tmp_path, epochs=3, resume=old)
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 6)
    before, after = load_checkpoint_file(old), load_checkpoint_file(tmp_path / 'epoch_3.pth')
    rates = [file['message_hub']['log_scalars']['train/lr'].data[0] for file in (before, after)]
    assert len(rates[0]) == 4 and rates[1][:4].tolist() == rates[0].tolist()
    set_random_state(before['run_state']['random'])
    assert torch.equal(torch.get_rng_state(), before['run_state']['random']['torch'])
    assert names_in(tmp_path / 'epoch_3.pth') <= names_in(old)
