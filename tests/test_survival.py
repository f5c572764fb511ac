"""A run that is stopped, killed or out of disk goes on where it was: faults in runs of tools/train.py."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub
from tiny_run import HEIR, REPO, read_scalars, steps, train, write_config, write_data

from mmhcg.runs.checkpoint_hook import SafeCheckpointHook
from mmhcg.runs.preemption import PreemptionHook
from mmhcg.stack.checkpoints import load_checkpoint_file

SEED = 6  # of the moments at which runs are killed
# Changes pictures by random numbers of Python and NumPy; MMDetection's samplers of boxes take PyTorch's.
NOISY = """
_base_ = 'tiny.py'
train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline.insert(2, dict(type='faults.Noise'))
test_pipeline.insert(1, dict(type='faults.Noise'))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
"""
ITERATIONS = """
_base_ = 'noisy.py'
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=8, val_interval=4)
train_dataloader = dict(sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True))
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=8))
log_processor = dict(by_epoch=False)
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A folder with shapes/ and the configs tiny.py, noisy.py and iterations.py."""
    folder = tmp_path_factory.mktemp('survival')
    write_config(folder)
    write_data(folder)
    (folder / 'noisy.py').write_text(NOISY)
    (folder / 'iterations.py').write_text(ITERATIONS)
    return folder


def assert_same(path: Path, other: Path) -> None:
    """Weights, buffers and the optimizer's momentum are equal to the last bit."""
    one, two = (load_checkpoint_file(name) for name in (path, other))
    tensors, others = (
        {
            **file['state_dict'],
            **{i: state['momentum_buffer'] for i, state in file['optimizer']['state'].items()},
            **{f'average of {name}': mean for name, mean in file.get('ema_state_dict', {}).items()},
        }
        for file in (one, two)
    )
    assert tensors.keys() == others.keys() and len(tensors) > 500
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


# Repeating and resuming


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses(folder):
    options = ['--cfg-options', 'train_cfg.max_epochs=7', 'train_cfg.val_interval=100', 'val_dataloader=None']
    options += ['val_cfg=None', 'val_evaluator=None']
    losses = []
    for work_dir in ('once', 'twice'):
        assert train(folder, work_dir, *options, config='noisy.py') == 0
        losses.append([line['loss'] for line in read_scalars(folder / work_dir) if 'loss' in line])
    assert len(losses[0]) >= 20
    assert losses[0] == losses[1]


@pytest.fixture(scope='module')
def straight(folder) -> Path:
    """The work dir of four epochs at once, each with its validation."""
    assert train(folder, 'straight', '--cfg-options', 'train_cfg.max_epochs=4', config='noisy.py') == 0
    return folder / 'straight'


@pytest.mark.slow
def test_two_epochs_and_two_more_are_four(folder, straight):
    assert train(folder, 'halves', '--cfg-options', 'train_cfg.max_epochs=2', config='noisy.py') == 0
    options = ['--resume', '--cfg-options', 'train_cfg.max_epochs=4']
    assert train(folder, 'halves', *options, config='noisy.py') == 0
    assert_same(straight / 'epoch_4.pth', folder / 'halves/epoch_4.pth')


PREEMPTIONS = {
    'in an epoch': dict(name='SIGTERM', iteration=4),
    'in validation': dict(name='SIGUSR1', val_iteration=1),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', PREEMPTIONS)
def test_a_signal_stops_a_run_that_goes_on_as_if_it_had_not(folder, straight, case):
    """Exit code 75, and `--resume` continues with the next iteration, or validates again."""
    fault = dict(type='faults.Signal', **PREEMPTIONS[case])
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    options = ['--cfg-options', 'train_cfg.max_epochs=4']
    work_dir = folder / case.replace(' ', '_')
    assert train(folder, work_dir.name, *options, config='noisy.py', faults=[fault]) == 75
    assert handlers == [
        signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    ]
    reached = steps(work_dir)[-1]
    assert load_checkpoint_file(work_dir / 'interrupted.pth')['meta']['iter'] == reached
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'interrupted.pth')
    assert train(folder, work_dir.name, '--resume', *options, config='noisy.py') == 0
    assert steps(work_dir) == list(range(reached + 1, steps(straight)[-1] + 1))
    validated = [line['step'] for line in read_scalars(work_dir) if 'coco/bbox_mAP' in line]
    assert validated == ([2, 3, 4] if case == 'in an epoch' else [1, 2, 3, 4])
    assert_same(straight / 'epoch_4.pth', work_dir / 'epoch_4.pth')
    assert not (work_dir / 'interrupted.pth').exists()  # what came after is newer


@pytest.mark.slow
def test_averaged_weights_are_not_mixed_up_when_validation_is_interrupted(folder):
    """EMAHook exchanges them with the model's for as long as validation takes."""
    (folder / 'averaged.py').write_text(HEIR.format(base='tiny.py', hooks=[dict(type='EMAHook')]))
    assert train(folder, 'averaged', config='averaged.py') == 0
    faults = [dict(type='EMAHook'), dict(type='faults.Signal', name='SIGTERM', val_iteration=1)]
    assert train(folder, 'averaged_stopped', faults=faults) == 75
    assert train(folder, 'averaged_stopped', '--resume', config='averaged.py') == 0
    assert_same(folder / 'averaged/epoch_2.pth', folder / 'averaged_stopped/epoch_2.pth')


def test_the_model_has_its_own_weights_again_when_an_interrupted_validation_is_saved(tmp_path):
    model, average, saved = torch.nn.Linear(1, 1, bias=False), EMAHook(), []
    preemption = PreemptionHook()
    runner = SimpleNamespace(
        model=model,
        hooks=[average, preemption],
        optim_wrapper=None,
        rank=0,
        epoch=1,
        iter=3,
        work_dir=str(tmp_path),
        logger=logging.getLogger('survival'),
        save_checkpoint=lambda *_, **__: saved.append(model.weight.item()),
    )
    torch.nn.init.constant_(model.weight, 1)
    average.before_run(runner)
    torch.nn.init.constant_(model.weight, 2)  # by training
    average.before_val_epoch(runner)
    assert model.weight.item() == 1
    preemption.after_val_iter(runner)  # nobody has told it to stop
    preemption._note(signal.SIGTERM, None)
    with pytest.raises(SystemExit) as stop:
        preemption.after_val_iter(runner)
    assert (stop.value.code, saved) == (75, [2])


@pytest.mark.slow
def test_a_loop_over_iterations_goes_on_as_if_not_stopped(folder):
    assert train(folder, 'iters', config='iterations.py') == 0
    fault = dict(type='faults.Signal', name='SIGTERM', iteration=4)
    assert train(folder, 'iters_stopped', config='iterations.py', faults=[fault]) == 75
    assert train(folder, 'iters_stopped', '--resume', config='iterations.py') == 0
    assert steps(folder / 'iters_stopped') == [6, 7, 8]
    assert_same(folder / 'iters/iter_8.pth', folder / 'iters_stopped/iter_8.pth')


@pytest.mark.slow
def test_gradients_are_summed_up_before_a_run_stops(folder):
    fault = dict(type='faults.Signal', name='SIGTERM', iteration=2)
    options = ['--cfg-options', 'optim_wrapper.accumulative_counts=4']
    assert train(folder, 'sums', *options, faults=[fault]) == 75
    assert load_checkpoint_file(folder / 'sums/interrupted.pth')['meta']['iter'] == 4


@pytest.mark.slow
@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT'])
def test_workers_survive_a_signal_to_all_processes_and_end_with_the_run(folder, name):
    """As Slurm sends it, or Ctrl-C: a data loader's worker that dies of it would take the run down."""
    options = ['--no-pretrained', '--data-root', 'shapes', '--work-dir', name, '--cfg-options']
    options += [
        'train_cfg.max_epochs=1000',
        'default_hooks.checkpoint=None',
        'train_dataloader.num_workers=1',
    ]
    options += ['train_dataloader.persistent_workers=True']
    command = [sys.executable, str(REPO / 'tools/train.py'), 'tiny.py', *options]
    run = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests may run in the background
    )
    with run:
        assert any('Epoch(train)' in line for line in run.stdout)
        os.killpg(run.pid, getattr(signal, name))
        rest, _ = run.communicate(timeout=100)
    assert run.returncode == 75, rest[-2000:]
    assert f'{name}: saved iteration' in rest
    assert load_checkpoint_file(folder / name / 'interrupted.pth')['meta']['iter'] > 0
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(run.pid, 0)


def test_a_signal_that_is_ignored_on_purpose_stays_ignored():
    """As a shell script has SIGINT for what it runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    hook = PreemptionHook()
    try:
        hook.before_train(None)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == hook._note
    finally:
        hook.leave_train(None)
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_listened_to():
    """As Python wants it; in a notebook's thread, for one, training has to begin all the same."""
    hook, before = PreemptionHook(), signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(hook.before_train, None).result()
    assert signal.getsignal(signal.SIGTERM) is before
    hook.leave_train(None)  # has nothing to undo


def test_a_second_ctrl_c_stops_at_once(capfd):
    hook = PreemptionHook()
    hook._note(signal.SIGINT, None)
    assert 'saving and stopping after this iteration' in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        hook._note(signal.SIGINT, None)


# Killing


@pytest.mark.slow
def test_killed_runs_resume(folder):
    """Of 50 runs, each killed around a save, all go on, and nothing is lost that was saved before it."""
    print('seed of the moments:', SEED)
    command = [sys.executable, str(REPO / 'tests/kill_trials.py'), str(folder), str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    for result in results:
        assert len(result['lost']) == 25
        assert set(result['lost']) <= {0, -1}, result  # -1: the save during which it was killed is whole
        assert result['kept'] <= result['keep'] + 1
    assert sum(result['torn'] for result in results) > 0  # some were killed while the file was written


@pytest.mark.slow
def test_leftovers_of_killed_runs_are_cleared_away(folder):
    work_dir = folder / 'leftovers'
    work_dir.mkdir()
    (work_dir / 'epoch_1.pth.123.unfinished').write_bytes(b'x')
    assert train(folder, 'leftovers', '--cfg-options', 'train_cfg.max_epochs=1') == 0
    assert list(work_dir.glob('*.unfinished')) == []


@pytest.mark.slow
def test_old_checkpoints_are_deleted_after_the_new_one_is_written(folder, monkeypatch):
    """The best one, too; nothing is left of them that is not to be kept."""
    from mmengine.runner import Runner

    work_dir, seen = folder / 'best', []
    save = Runner.save_checkpoint

    def spy(self: Runner, *args, **kwargs) -> None:
        before = {path.name for path in work_dir.glob('*.pth')}
        save(self, *args, **kwargs)
        seen.append(before - {path.name for path in work_dir.glob('*.pth')})

    monkeypatch.setattr(Runner, 'save_checkpoint', spy)
    best = dict(max_keep_ckpts=1, save_best='coco/bbox_mAP', rule='greater')
    options = [f'default_hooks.checkpoint.{key}={value}' for key, value in best.items()]
    scores = iter((0.1, 0.3, 0.2))
    monkeypatch.setattr(
        'mmhcg.runs.coco_metric.CocoTwelve.compute_metrics', lambda *_: {'bbox_mAP': next(scores)}
    )
    assert train(folder, 'best', '--cfg-options', 'train_cfg.max_epochs=3', *options) == 0
    assert len(seen) == 7 and not any(seen)  # 3 epochs, 2 of them better, each saved again for that
    kept = {path.name for path in work_dir.glob('*.pth')}
    assert kept == {'epoch_3.pth', 'best_coco_bbox_mAP_epoch_2.pth'}


def test_the_best_checkpoint_stays_when_it_is_saved_again_under_its_name(tmp_path):
    """As where a validation is repeated."""
    hub = MessageHub('best')
    runner = SimpleNamespace(
        work_dir=str(tmp_path), epoch=1, iter=2, message_hub=hub, logger=logging.getLogger()
    )
    runner.save_checkpoint = lambda folder, filename, **_: Path(folder, filename).touch()
    hook = SafeCheckpointHook(save_best='ap', rule='greater')
    hook.before_train(runner)
    for ap in (0.1, 0.2):
        hook._save_best_checkpoint(runner, {'ap': ap})
        assert [path.name for path in tmp_path.iterdir()] == ['best_ap_epoch_1.pth']
    runner.epoch = 2
    hook._save_best_checkpoint(runner, {'ap': 0.3})
    assert [path.name for path in tmp_path.iterdir()] == ['best_ap_epoch_2.pth']


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(folder, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fault = dict(type='faults.DiskFull', size=500_000, iteration=3)  # after an epoch
    try:
        assert train(folder, 'full', faults=[fault]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = capsys.readouterr().err
    assert f'cannot write the checkpoint {folder}/full/epoch_2.pth: File too large; 1.1 MB' in message
    assert 'MB free there' in message
    assert {path.name for path in (folder / 'full').glob('epoch*')} == {'epoch_1.pth', 'epoch_1.pth.before'}
    assert (folder / 'full/epoch_1.pth').read_bytes() == (folder / 'full/epoch_1.pth.before').read_bytes()
    assert train(folder, 'full', '--resume') == 0
    assert steps(folder / 'full')[0] == 4
