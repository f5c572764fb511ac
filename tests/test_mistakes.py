"""Slips on the command line: one message and an exit code, before anything is built or written."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mmdet
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.hooks import IterTimerHook
from mmengine.model import PretrainedInit
from mmengine.optim import AmpOptimWrapper
from tiny_run import load_tool, write_config, write_data
from torch import nn

from mmhcg import HCGNet
from mmhcg.runs import UserError, cli, launch, preflight, train
from mmhcg.runs.coco_metric import use_twelve_numbers
from mmhcg.runs.config import build_detector, class_name, load_config
from mmhcg.runs.finite import FiniteTraining
from mmhcg.runs.launch import test as run_test
from mmhcg.runs.names import check_names
from mmhcg.runs.places import check_file
from mmhcg.runs.predictions import CheckedPredictions
from mmhcg.runs.pretrained import start_from_scratch
from mmhcg.runs.safe_runner import SafeRunner
from mmhcg.stack.checkpoints import CheckpointError


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    """A folder with tiny.py, its weights.pth and shapes/, the set that it trains on."""
    folder = tmp_path_factory.mktemp('tiny')
    config = write_config(folder)
    write_data(folder)
    torch.save(build_detector(config).state_dict(), folder / 'weights.pth')
    return folder


def refusal(tool: str, argv: list[object], capsys: pytest.CaptureFixture, code: int = 2) -> str:
    """The message with which a tool ends."""
    with pytest.raises(SystemExit) as stop:
        load_tool(tool).main([str(arg) for arg in argv])
    assert stop.value.code == code
    told = capsys.readouterr().err
    assert 'error: ' in told
    return told.rpartition('error: ')[2].strip()


@pytest.mark.parametrize('option', ['--resume', '--data-root', '--work-dir'])
def test_an_unset_variable_of_the_shell_is_refused(tiny, capsys, option):
    told = refusal('train', [tiny / 'tiny.py', '--no-pretrained', option, ''], capsys)
    assert told == f'{option} is empty: is a shell variable unset?'


@pytest.mark.parametrize('option', ['--data-root', '--work-dir', '--show-dir'])
def test_tests_refuse_it_too(tiny, capsys, option):
    told = refusal('test', [tiny / 'tiny.py', tiny / 'weights.pth', option, ''], capsys)
    assert told == f'{option} is empty: is a shell variable unset?'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--out', 'taken.pkl'], 'taken.pkl is a folder: name a file'),
        (['--out', 'file/new/results.pkl'], 'file is not a folder'),
        (['--show-dir', 'file'], 'file is not a folder'),
        (['--work-dir', 'file'], 'file is not a folder'),
    ],
)
def test_places_of_results_are_looked_at_first(tiny, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'taken.pkl').mkdir()
    (tmp_path / 'file').touch()
    argv = [tiny / 'tiny.py', tiny / 'weights.pth', '--data-root', tiny / 'shapes', *options]
    assert message in refusal('test', argv, capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'taken.pkl']


@pytest.mark.parametrize(
    ('closed', 'name', 'message'),
    [
        ('old.pkl', 'old.pkl', 'old.pkl is not writable'),
        ('.', 'new.pkl', 'the folder .* is not writable'),
        ('.', 'old.pkl', 'the folder .* is not writable'),  # for a whole file takes its place
    ],
)
def test_places_that_may_not_be_written_are_refused(tmp_path, monkeypatch, closed, name, message):
    (tmp_path / 'old.pkl').touch()
    check_file('--out', tmp_path / name)
    shut = str(tmp_path / closed)
    # Not by chmod, which does not stop root
    monkeypatch.setattr(os, 'access', lambda path, mode: path != shut or not mode & os.W_OK)
    with pytest.raises(UserError, match=f'^--out {tmp_path}.*{message}'):
        check_file('--out', tmp_path / name)


@pytest.mark.parametrize(
    ('tool', 'argv'),
    [
        ('robustness', ['a.py', 'a.pth', '--eps', '0', '--csv']),
        ('robustness', ['a.py', 'a.pth', '--eps', '0', '--plot']),
        ('compare_runs', ['run', '--csv']),
        ('swap_zoo', ['--csv']),
    ],
)
def test_places_of_tables_are_looked_at_first(tool, argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'taken.png').mkdir()
    assert 'is a folder: name a file' in refusal(tool, [*argv, 'taken.png'], capsys)


def test_benchmarks_look_first_too(tmp_path, capsys):
    assert 'is a folder' in refusal('benchmark', ['--csv', tmp_path], capsys)
    (tmp_path / 'file').touch()
    assert 'file is not a folder' in refusal('benchmark', ['--plot', tmp_path / 'file/new/x.png'], capsys)


@pytest.mark.parametrize(
    ('tool', 'argv'),
    [
        ('robustness', ['a.py', 'a.pth', '--eps', '0']),
        ('compare_runs', ['.']),
        ('benchmark', ['--shape', '1', '8', '8']),
    ],
)
def test_pictures_and_tables_that_cannot_be_written_are_told_first(tool, argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for plot in ('out.csv', 'out.foo', 'out'):
        told = refusal(tool, [*argv, '--plot', plot], capsys)
        assert told == f'--plot {plot} must end in .png, .pdf, .svg'
    assert 'has the name of a picture' in refusal(tool, [*argv, '--csv', 'out.png'], capsys)
    assert list(tmp_path.iterdir()) == []
    Path('mine.csv').write_text('a,b\n1,2\n')
    options = [['--csv', 'mine.csv'], *([['--plot', 'mine.png']] if tool != 'benchmark' else [])]
    for option in options:
        assert 'mine.csv is there and has other columns than ' in refusal(tool, [*argv, *option], capsys)
    assert Path('mine.csv').read_text() == 'a,b\n1,2\n'


def test_a_swap_is_not_without_weights_by_accident(capsys):
    told = refusal('swap_backbone', ['mmdet::any.py', '--pretrained', ''], capsys)
    assert told == '--pretrained is empty: is a shell variable unset?'


def test_visualize_looks_at_its_options_first(tmp_path, capsys):
    (tmp_path / 'file').touch()
    argv = ['a.py', 'a.pth', 'a.jpg', '--out']
    assert 'is not a folder' in refusal('visualize', [*argv, tmp_path / 'file'], capsys)
    for score in ('nan', '-0.1', '1.5'):
        told = refusal('visualize', [*argv, tmp_path / 'new', '--score-thr', score], capsys)
        assert told == f'--score-thr must be from 0 to 1, not {score}'


MISTAKES = {
    '--seed -1': 'the seed must be a whole number from 0 to 4294967295, not -1',
    f'--seed {2**32}': 'the seed must be a whole number from 0 to',
    '--cfg-options optim_wrapper=None': 'has no `optim_wrapper`',
    '--cfg-options train_dataloader=None': 'has no `train_dataloader`',
    '--cfg-options train_dataloader.dataset=None': '`train_dataloader` must be a dict with a `dataset`',
    '--cfg-options train_dataloader.batch_size=0': 'train_dataloader.batch_size must be 1 or more, not 0',
    '--cfg-options train_cfg=7': '`train_cfg` must be a dict, not 7',
    '--cfg-options val_evaluator=None': 'has no `val_evaluator`, which belongs to val_dataloader and val_cfg',
    '--cfg-options model.backbone.arch=z': 'its model cannot be built: ',
    '--cfg-options model.roi_head.bbox_head.clases=3': "unexpected keyword argument 'clases'",
    '--cfg-options train_dataloder.batch_size=3': 'has no `train_dataloder`; is it `train_dataloader`?',
    '--cfg-options train_dataloader.batchsize=3': 'batchsize: DataLoader takes no `batchsize`',
    '--cfg-options train_dataloader.sampler.shufle=1': 'sampler.shufle: DefaultSampler takes no `shufle`',
    '--cfg-options train_dataloader.dataset.data_perfix=x': 'takes no `data_perfix`; is it `data_prefix`?',
    '--cfg-options train_dataloader.dataset.pipeline.2.type=Flip': "pipeline.2.type='Flip' is not registered",
    '--cfg-options val_dataloader.dataset.pipeline.1.scal=3': 'pipeline.1.scal: Resize takes no `scal`',
    '--cfg-options train_cfg.max_epoch=3': 'EpochBasedTrainLoop takes no `max_epoch`; is it `max_epochs`?',
    '--cfg-options optim_wrapper.clip=1': 'optim_wrapper.clip: OptimWrapper takes no `clip`',
    '--cfg-options optim_wrapper.optimizer.lrr=1': 'optimizer.lrr: SGD takes no `lrr`; is it `lr`?',
    '--cfg-options optim_wrapper.optimizer.type=SDG': "type='SDG' is not registered; is it `SGD`?",
    '--cfg-options param_scheduler.1.milestone=3': 'param_scheduler.1.milestone: MultiStepLR takes no',
    '--cfg-options val_evaluator.metrik=bbox': 'CocoMetric takes no `metrik`; is it `metric`?',
    '--cfg-options default_hooks.timer.each=3': 'default_hooks.timer.each: IterTimerHook takes no `each`',
    '--cfg-options model.neck.in_channels=[72,44,30,24]': '[72, 44, 30, 24], and HCGNet returns [72, 44',
    '--cfg-options a=[(1,2]': '--cfg-options wants KEY=VALUE, and brackets that fit each other',
    '--launcher pytorch': 'the variable RANK is not set: start it with torchrun',
    '--launcher slurm': 'the variable SLURM_PROCID is not set: start it with srun',
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_mistakes_end_before_the_folder_is_made(tiny, tmp_path, monkeypatch, capsys, mistake):
    for variable in ('RANK', 'SLURM_PROCID'):
        monkeypatch.delenv(variable, raising=False)
    argv = [tiny / 'tiny.py', '--data-root', tiny / 'shapes', '--work-dir', tmp_path / 'run']
    # Before pretrained weights are looked for, which are not there, except for those of the data.
    weights = ['--no-pretrained'] if 'train_dataloader' in mistake else []
    assert MISTAKES[mistake] in refusal('train', [*argv, *weights, *mistake.split(' ')], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'test_evaluator': None}, 'has no `test_evaluator`'),
        ({'test_dataloader.batch_size': -1}, 'test_dataloader.batch_size must be 1 or more, not -1'),
        (
            {'model.rpn_head.feat_chanels': 3},
            r'its model cannot be built: .*\(model.rpn_head.feat_chanels; is it `feat_channels`\?\)',
        ),
    ],
)
def test_mistakes_in_what_is_tested(tiny, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run_test(
            tiny / 'tiny.py',
            tiny / 'weights.pth',
            tiny / 'shapes',
            work_dir=tmp_path / 'run',
            cfg_options=options,
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_model_are_refused_before_the_folder_is_made(tiny, tmp_path):
    torch.save({'fc.weight': torch.ones(1)}, tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match=r'other\.pth: does not fit MaskRCNN'):
        run_test(tiny / 'tiny.py', tmp_path / 'other.pth', tiny / 'shapes', work_dir=tmp_path / 'run')
    assert [path.name for path in tmp_path.iterdir()] == ['other.pth']


def test_a_key_that_no_config_has_wrong_is_not_blamed(tiny):
    """The detector hands `train_cfg` on to its head, which is the one that does not take it."""

    class Head(nn.Module):
        def __init__(self, test_cfg=None):
            super().__init__()

    cfg = load_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.bbox_head = dict(type=Head)
    with pytest.raises(UserError, match=r"unexpected keyword argument 'train_cfg'$"):
        preflight.check_model(cfg)


def test_names_that_shipped_configs_use_pass():
    for name in ('mmhcg::mask_rcnn_hcgnet_b_fpn_1x_coco.py', 'mmdet::yolox/yolox_s_8xb8-300e_coco.py'):
        check_names(load_config(name), ('train', 'val', 'test'))
    augmented = load_config('mmdet::albu_example/mask-rcnn_r50_fpn_albu-1x_coco.py')
    check_names(augmented, ('train',))  # transforms of another library inside of one


def own_class(base):
    """A class of a user's, whose `**kwargs` nobody can follow."""

    class Own(base):
        def __init__(self, *args, **kwargs):
            self.own = kwargs.pop('own', 0)
            super().__init__(*args, **kwargs)

    return Own


OF_ANOTHER_LIBRARY = dict(type='Resize', scale=dict(dataset=dict(type='X')))


@pytest.mark.parametrize(
    'part',
    [
        dict(train_dataloader=dict(dataset=dict(type=own_class(BaseDataset), own=3, lazy_init=True))),
        dict(train_dataloader=dict(num_batch_per_epoch=3, disable_subprocess_warning=True)),
        dict(custom_hooks=[dict(type=own_class(IterTimerHook), own=3)]),
        dict(custom_hooks=[dict(type='ChannelsLast', _scope_='mmhcg')]),
        dict(train_dataloader=dict(batch_sampler=dict(type='AspectRatioBatchSampler', _scope_='mmdet'))),
        dict(optim_wrapper=dict(constructor='Own', head=dict(type='OptimWrapper'))),
        dict(train_dataloader=dict(dataset=dict(pipeline=[OF_ANOTHER_LIBRARY]))),
    ],
    ids=str,
)
def test_what_cannot_be_known_passes(part):
    check_names(Config(dict(default_scope='mmdet' if 'X' in str(part) else 'mmengine', **part)), ('train',))


def test_loops_without_a_type_are_checked_by_the_class_they_stand_for():
    for key, loop in (
        ('train_cfg', dict(by_epoch=True, max_epochs=1, val_intervall=2)),
        ('train_cfg', dict(by_epoch=False, max_iters=1, max_epochs=2)),
        ('val_cfg', dict(by_epoch=True)),
    ):
        with pytest.raises(UserError, match=rf'{key}\.\w+: (EpochBased|IterBased|Val)\w*Loop takes no'):
            check_names(Config({key: loop}), ('train', 'val'))
    check_names(Config(dict(train_cfg=dict(by_epoch=True, max_epochs=1), val_cfg={})), ('train', 'val'))


@pytest.mark.slow
def test_of_all_of_mmdetections_configs_those_are_refused_that_mmengine_cannot_run():
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    refused = Counter()
    for path in sorted(folder.rglob('*.py')):
        if '_base_' not in path.parts:
            try:
                cfg = Config.fromfile(path)
            except Exception:  # some inherit from files that are not there
                continue
            try:
                check_names(cfg, [mode for mode in ('train', 'val', 'test') if cfg.get(f'{mode}_dataloader')])
            except UserError as error:
                refused[str(error).partition(': ')[2].partition(';')[0]] += 1
    assert refused == {
        "test_evaluator.type='MOTChallengeMetrics' is not registered": 2,
        'val_evaluator.eval_mode: CocoMetric takes no `eval_mode`': 1,
        'train_cfg.by_epoch: EpochBasedTrainLoop takes no `by_epoch`': 4,
    }


def test_a_slip_is_told_and_a_name_of_ones_own_is_not():
    for option in ('compile.backend', 'model_wrapper_cfg.type', 'my_section.key'):
        assert load_config('mmhcg::mask_rcnn_hcgnet_b_fpn_1x_coco.py', {option: 'x'})


@pytest.mark.parametrize('name', ['retinanet/retinanet_r50_fpn_1x_coc.py', 'retinanet_r50_fpn_1x_coco.py'])
def test_a_slip_in_the_name_of_a_config_is_told(name):
    with pytest.raises(UserError, match=rf'^no config mmdet::{name} in .*; is it `retinanet/retinanet_r50_'):
        load_config(f'mmdet::{name}')


def test_a_norm_of_mmcv_is_refused_before_the_run_and_fine_elsewhere(tiny):
    cfg = load_config(tiny / 'tiny.py', {'model.neck.norm_cfg.type': 'MMSyncBN'})
    preflight.check_model(cfg)
    from mmcv.ops import SyncBatchNorm

    for kind in ('mmengine.MMSyncBN', SyncBatchNorm):  # the class in a pure-Python config
        cfg.model.neck.norm_cfg.type = kind
        preflight.check_model(cfg)
    cfg.model.backbone.norm_cfg = dict(type='MMSyncBN')
    with pytest.raises(UserError, match=r"norm_cfg must be .* BN, SyncBN or GN, not .*'MMSyncBN'"):
        preflight.check_model(cfg)


def test_backbones_that_need_numbers_or_are_functions_pass(tiny):
    class Numbers(HCGNet):
        def __init__(self, **options):
            super().__init__(**options)
            self.scale = float(next(self.parameters()).abs().mean())

    cfg = load_config(tiny / 'tiny.py')
    cfg.model.backbone.type = Numbers
    preflight.check_model(cfg)
    assert isinstance(preflight.hcgnet_of(cfg), Numbers)
    cfg.model.backbone.type = function = lambda **options: HCGNet(**options)
    assert preflight.check_backbone(cfg) is function and preflight.hcgnet_of(cfg) is None
    assert 'norms learn' in start_from_scratch(cfg, function)


def test_necks_that_take_some_of_the_maps_pass(tiny):
    cfg = load_config(tiny / 'tiny.py')
    cfg.model.neck = [dict(type='ChannelMapper', in_channels=[23], out_channels=16)]
    preflight.check_model(cfg)


@pytest.mark.parametrize('options', [{}, {'model.backbone.norm_cfg.type': 'SyncBN'}])
def test_one_image_a_batch_is_refused_where_norms_learn(tiny, tmp_path, options):
    options = {'train_dataloader.batch_size': 1, **options}
    with pytest.raises(UserError, match=r'batch_size=1: .* at least two images per GPU\. Set norm_eval=True'):
        train(tiny / 'tiny.py', tmp_path / 'run', tiny / 'shapes', cfg_options=options, no_pretrained=True)
    assert list(tmp_path.iterdir()) == []
    cfg = load_config(tiny / 'tiny.py', options)  # its norms do not learn
    preflight.settle_batches(cfg)
    cfg.model.backbone.norm_eval, cfg.launcher = False, 'pytorch'
    if 'SyncBN' in options.values():  # the other processes' images count, too
        preflight.settle_batches(cfg)
    else:
        with pytest.raises(UserError, match='batch_size=1: '):
            preflight.settle_batches(cfg)


def test_models_that_need_numbers_to_be_built_pass():
    """Their constructors do not work on the device without any."""
    cfg = load_config('mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py')
    preflight.check_model(cfg)


def test_a_file_that_cannot_be_read_or_written_ends_in_a_message(capsys):
    def fail(error: OSError) -> None:
        raise error

    parser = argparse.ArgumentParser()
    parser.set_defaults(error=OSError(errno.ENOSPC, 'No space left on device', 'x.csv'))
    with pytest.raises(SystemExit, match='2'):
        cli.run(fail, parser, [])
    assert capsys.readouterr().err == 'error: x.csv: No space left on device\n'
    parser.set_defaults(error=ConnectionResetError('by the peer'))
    with pytest.raises(ConnectionResetError):
        cli.run(fail, parser, [])


def test_no_room_for_temporary_files_is_told(tiny, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tiny / 'gone'))
    with pytest.raises(UserError, match=r'cannot write there .*/gone/.*make room, or set TMPDIR'):
        load_config(tiny / 'tiny.py')


def test_wrong_numbers_for_shapes(tmp_path, capsys):
    argv = [tmp_path / 'set', '--images', '0', '--seed', '0']
    assert 'cannot make shapes with images=0' in refusal('make_shapes', argv, capsys)
    assert 'seed=-1' in refusal('demo', ['--work-dir', tmp_path / 'demo', '--seed', '-1'], capsys)
    (tmp_path / 'file').touch()
    assert 'file is not a folder' in refusal('demo', ['--work-dir', tmp_path / 'file'], capsys)


def test_the_demo_keeps_the_exit_code_of_divergence(monkeypatch, capsys):
    from mmhcg.runs import demo
    from mmhcg.runs.errors import DivergedError

    def diverge(*args: object) -> None:
        raise DivergedError('loss is nan')

    monkeypatch.setattr(demo, 'run_demo', diverge)
    assert refusal('demo', [], capsys, code=3) == 'loss is nan'


def test_measuring_gradients_leaves_them_as_they_are(monkeypatch):
    """Scaled by 1 in the order of clip_grad_norm_, all would be NaN where one is infinite."""
    for has_function in (True, False):
        if not has_function:
            monkeypatch.delattr(nn.utils, 'get_total_norm', raising=False)
        layer, hook = nn.Linear(2, 2), FiniteTraining()
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        hook._measure(optimizer)
        assert hook._norm == 0  # before there are any
        layer.weight.grad, layer.bias.grad = torch.full((2, 2), 1.5), torch.tensor([0.0, 4.0])
        hook._measure(optimizer)
        assert hook._norm == 5
        layer.bias.grad[0] = float('inf')
        hook._measure(optimizer)
        assert hook._norm == float('inf')
        assert (layer.weight.grad == 1.5).all() and layer.bias.grad.tolist() == [float('inf'), 4]


def test_an_evaluation_that_failed_leaves_nothing_to_the_next():
    class Head(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    hook, head = CheckedPredictions(), Head()
    runner = SimpleNamespace(model=nn.Sequential(head))
    hook.before_val_epoch(runner)
    head(torch.tensor(float('nan')))
    hook._seen.add(1)
    hook.before_test_epoch(runner)  # and no end of the first
    assert (hook._seen, hook._nan, len(head._forward_hooks)) == (set(), [], 1)


def test_a_type_has_one_name_however_it_is_written():
    for kind in ('AmpOptimWrapper', 'mmengine.AmpOptimWrapper', AmpOptimWrapper):
        assert class_name({'type': kind}) == 'AmpOptimWrapper'
        if not torch.cuda.is_available():
            with pytest.raises(UserError, match='needs a GPU'):
                preflight.check_amp(Config(dict(optim_wrapper=dict(type=kind))))
    assert class_name(PretrainedInit('x.pth')) == 'PretrainedInit'
    from mmdet.evaluation import CocoMetric

    metrics = [ConfigDict(type=CocoMetric), ConfigDict(type='mmdet.CocoMetric')]
    use_twelve_numbers(metrics)
    assert [metric.type for metric in metrics] == ['mmhcg.CocoTwelve'] * 2


@pytest.mark.parametrize(('said', 'brief'), [({}, True), ({'brief_screen': False}, False)])
def test_long_lists_are_kept_off_the_screen_unless_the_config_wants_them(monkeypatch, said, brief):
    monkeypatch.setattr(launch.Runner, 'from_cfg', lambda cfg: cfg)
    assert launch._build_runner(Config(dict(launcher='none', **said))).brief_screen == brief


def test_long_lists_can_be_kept_off_the_screen(tmp_path, capsys):
    runner = object.__new__(SafeRunner)
    runner.cfg, runner._experiment_name = Config(dict(brief_screen=True)), 'brief'
    runner._log_dir, runner._timestamp = str(tmp_path), 'now'
    logger = runner.build_logger()
    for file, level, text in (
        ('runner.py', logging.INFO, 'Config:\na = 1'),
        ('runner.py', logging.INFO, 'one line'),
        ('runner.py', logging.WARNING, 'a warning\nof two'),
        ('coco_metric.py', logging.INFO, '\n AP = 0.4'),
    ):
        logger.handle(logger.makeRecord('mmengine', level, file, 1, text, (), None))
    shown, logged = capsys.readouterr().out, (tmp_path / 'now.log').read_text()
    assert 'Config' in logged and 'Config' not in shown
    for text in ('one line', 'of two', 'AP = 0.4'):
        assert text in shown and text in logged


def test_progress_is_told_in_lines_where_there_is_no_terminal(capsys):
    cli.progress('building')
    cli.end_progress()
    assert capsys.readouterr().err == 'building\n'
    assert list(load_tool('dissect')._bar('net', 'thresholds', range(3))) == [0, 1, 2]
    assert capsys.readouterr().out == 'net: thresholds\n'
