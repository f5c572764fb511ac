"""A run ends where its numbers do, says which and with which images, and saves none of them."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from tiny_run import REPO, load_tool, read_scalars

from mmhcg.runs.config import load_config
from mmhcg.runs.errors import DivergedError
from mmhcg.runs.finite import FiniteTraining
from mmhcg.runs.safe_runner import SafeRunner
from mmhcg.stack.checkpoints import load_checkpoint_file

BIAS = 'roi_head.bbox_head.fc_cls.bias'
MEAN = 'backbone.stem.0.norm.running_mean'  # which training updates, but does not read
CONFIG = """
_base_ = {base!r}
custom_imports = dict(imports=['bad_numbers'])
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='SpoilImage', name='000000000003.png', value={pixel}),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(val_interval=3)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1))  # saves after every iteration
{more}
"""


def write_run(tiny: Path, folder: Path, more: str = '', pixel: str = '0') -> list[str]:
    """A config with a fault, and the arguments to train it in `folder/run`."""
    config = folder / 'faulty.py'
    config.write_text(CONFIG.format(base=str(tiny / 'tiny.py'), pixel=pixel, more=more))
    options = ['--data-root', tiny / 'shapes', '--work-dir', folder / 'run', '--no-pretrained', '--seed', 0]
    return [str(argument) for argument in (config, *options)]


def stop_of(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The message of a run that must end by itself, with the exit code for it."""
    with pytest.raises(SystemExit) as stop:
        load_tool('train').main(argv)
    assert stop.value.code == 3
    return capsys.readouterr().err.rpartition('error: ')[2]


def saved_iterations(work_dir: Path) -> list[int]:
    """Those after which a checkpoint was written; each holds finite numbers only."""
    numbers = []
    for path in work_dir.glob('*.pth'):
        checkpoint = load_checkpoint_file(path)
        numbers.append(checkpoint['meta']['iter'])
        momenta = [state['momentum_buffer'] for state in checkpoint['optimizer']['state'].values()]
        assert momenta and all(tensor.isfinite().all() for tensor in momenta)
        assert all(tensor.isfinite().all() for tensor in checkpoint['state_dict'].values())
    return sorted(numbers)


@pytest.mark.slow
def test_nan_losses_stop_an_optimised_python_too(tiny, tmp_path):
    command = [
        sys.executable,
        '-O',
        str(REPO / 'tools/train.py'),
        *write_run(tiny, tmp_path, pixel="float('nan')"),
    ]
    paths = os.pathsep.join(map(str, (REPO, REPO / 'tests')))
    done = subprocess.run(
        command, env={**os.environ, 'PYTHONPATH': paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 3, done.stderr[-3000:]
    message = done.stderr.rpartition('error: ')[2]
    assert message.startswith(
        'training diverged in iteration 3 (epoch 1): loss_rpn_cls is nan, loss_rpn_bbox is'
    )
    assert f'{tiny}/shapes/train2017/000000000003.png (id 3)\n' in message
    assert message.count('.png') == 2  # the batch
    assert 'Traceback' not in done.stderr
    assert saved_iterations(tmp_path / 'run') == [1, 2]
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert 'loss_mask is nan. The batch' in log.read_text()


@pytest.mark.slow
def test_the_loss_that_is_nan_is_named_alone(tiny, tmp_path, capsys):
    fault = f"custom_hooks = [dict(type='Spoil', what='weight', name={BIAS!r}, at=(2,))]"
    message = stop_of(write_run(tiny, tmp_path, fault), capsys)
    assert message.startswith('training diverged in iteration 2 (epoch 1): loss_cls is nan. The batch:')
    assert saved_iterations(tmp_path / 'run') == [1]


@pytest.mark.slow
def test_gradients_stop_a_run_before_a_loss_does(tiny, tmp_path, capsys):
    """An image so bright that all losses are finite: the weights would be NaN an iteration earlier."""
    message = stop_of(write_run(tiny, tmp_path, pixel='1e30'), capsys)
    assert 'in iteration 3 (epoch 1): the losses of this process are finite, but the norm' in message
    assert '000000000003.png (id 3)' in message
    assert saved_iterations(tmp_path / 'run') == [1, 2]


@pytest.mark.slow
def test_weights_that_no_loss_tells_of_are_not_saved(tiny, tmp_path, capsys):
    fault = (
        f"custom_hooks = [dict(type='EMAHook'), dict(type='Spoil', what='weight', name={MEAN!r}, at=(3,))]"
    )
    message = stop_of(write_run(tiny, tmp_path, fault), capsys)
    assert message.startswith(f'training diverged before a checkpoint was saved: state_dict.{MEAN} holds NaN')
    assert saved_iterations(tmp_path / 'run') == [1, 2]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='loss scales on CPUs need PyTorch 2.3')
def test_mixed_precision_may_skip_steps_but_not_all(tiny, tmp_path, capsys):
    """Skipped are the steps of iterations 1, 3 and 4: two in a row are too many here."""
    fault = f"""
optim_wrapper = dict(type='CpuAmp')
custom_hooks = [
    dict(type='Spoil', what='gradient', name={BIAS!r}, at=(1, 3, 4)),
    dict(type='mmhcg.FiniteTraining', max_skipped=2),
]
"""
    message = stop_of(write_run(tiny, tmp_path, fault), capsys)
    assert (
        'in iteration 4 (epoch 2): the gradients were not finite in 2 consecutive steps, all of which'
        in message
    )
    assert 'the loss scale is down to 8.19e+03. The batch:' in message  # 65536 / 2 / 2 / 2
    assert FiniteTraining().max_skipped == 50


@pytest.mark.skipif(not hasattr(torch.amp, 'GradScaler'), reason='loss scales on CPUs need PyTorch 2.3')
def test_iterations_that_only_sum_gradients_up_are_no_skipped_steps():
    """In mixed precision, where an iteration without a step leaves no norm: only steps count."""
    from bad_numbers import CpuAmp

    model, spoilt = torch.nn.Linear(1, 1), []
    model.bias.register_hook(lambda gradient: gradient * (math.inf if spoilt else 1))
    wrapper = CpuAmp(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=4)
    hook = FiniteTraining(max_skipped=2)
    runner = SimpleNamespace(optim_wrapper=wrapper, epoch=0, work_dir='', logger=logging.getLogger('x'))
    hook.before_train(runner)
    wrapper.initialize_count_status(model, 0, 16)

    def train_to(end: int) -> None:
        for runner.iter in range(wrapper.inner_count, end):
            loss = model(torch.ones(2, 1)).square().mean()
            wrapper.update_params(loss)
            hook.after_train_iter(runner, runner.iter, {}, {'loss': loss})

    train_to(8)
    spoilt.append(True)
    train_to(15)  # one step of these, skipped
    with pytest.raises(DivergedError, match=r'in iteration 16 .* were not finite in 2 consecutive steps'):
        train_to(16)


def test_an_iteration_without_a_step_is_let_through():
    """Of a model that steps in some iterations alone: there is no norm to look at, until there is one."""
    model = torch.nn.Linear(1, 1)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner = SimpleNamespace(
        optim_wrapper=wrapper, epoch=0, iter=0, work_dir='', logger=logging.getLogger('x')
    )
    hook = FiniteTraining()
    hook.before_train(runner)
    hook.after_train_iter(runner, 0, {}, {'loss': torch.ones(1)})
    runner.iter = 1
    wrapper.update_params(model(torch.full((1, 1), math.inf)).sum())
    with pytest.raises(DivergedError, match=r'in iteration 2 .* the norm of the gradients is inf'):
        hook.after_train_iter(runner, 1, {}, {'loss': torch.ones(1)})


@pytest.mark.parametrize('value', [float('nan'), float('-inf')])
@pytest.mark.parametrize('part', ['state_dict', 'ema_state_dict', 'optimizer'])
def test_no_part_of_a_checkpoint_may_be_nan(part, value):
    checkpoint = {
        'state_dict': {'w': torch.ones(2), 'count': torch.tensor(1)},
        'message_hub': {'loss': value},
    }
    runner = SimpleNamespace(logger=MMLogger.get_current_instance(), work_dir='work_dirs/x')
    FiniteTraining().before_save_checkpoint(runner, checkpoint)
    checkpoint[part] = {'state': [{'momentum': torch.tensor([1.0, value])}]}
    with pytest.raises(DivergedError, match=rf'{part}\.state\.0\.momentum holds NaN or infinity'):
        FiniteTraining().before_save_checkpoint(runner, checkpoint)


def test_hooks_of_the_config_are_kept(monkeypatch):
    registered = []
    monkeypatch.setattr(Runner, 'register_hooks', lambda self, default, custom: registered.extend(custom))
    runner = object.__new__(SafeRunner)
    runner.cfg = load_config('mmhcg::_base_/safe_run.py')
    own = [dict(type='EMAHook'), dict(type='mmhcg.FiniteTraining', max_skipped=9)]
    runner.register_hooks({}, own)
    names = [hook['type'].rpartition('.')[2] for hook in registered]
    assert registered[:2] == own
    assert names == ['EMAHook', 'FiniteTraining', 'CheckedPredictions', 'PreemptionHook', 'RunStateHook']


@pytest.mark.slow
def test_images_without_objects_train(tiny, tmp_path):
    """Batches of two: no objects, none and only crowds, objects in one of two, only crowds."""
    shutil.copytree(tiny / 'shapes', tmp_path / 'shapes')
    path = tmp_path / 'shapes/annotations/instances_train2017.json'
    truth = json.loads(path.read_text())
    truth['annotations'] = [one for one in truth['annotations'] if one['image_id'] in (4, 5, 7)]
    truth['annotations'] += [dict(one, id=one['id'] + 1000, image_id=8) for one in truth['annotations']]
    for one in truth['annotations']:
        one['iscrowd'] = int(one['image_id'] != 5)
    path.write_text(json.dumps(truth))
    more = 'train_dataloader.update(sampler=dict(shuffle=False))\n'
    more += "train_dataloader['dataset']['filter_cfg'] = None\nlog_processor = dict(window_size=1)"
    argv = [*write_run(tiny, tmp_path, more), '--data-root', str(tmp_path / 'shapes')]
    load_tool('train').main([*argv, '--cfg-options', 'train_cfg.max_epochs=1'])
    steps = [line for line in read_scalars(tmp_path / 'run') if 'lr' in line]
    for name in ('loss_rpn_bbox', 'loss_bbox', 'loss_mask'):
        assert [step[name] > 0 for step in steps] == [False, False, True, False]
    assert all(math.isfinite(step[name]) for step in steps for name in step if 'loss' in name)
    assert all(step['loss_cls'] > 0 and step['loss_rpn_cls'] > 0 for step in steps)  # on background alone
    assert saved_iterations(tmp_path / 'run') == [1, 2, 3, 4]
