"""Counts of operators and bytes by hand, and the benchmark from end to end on small images."""

import csv
import os
import sys
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from tiny_run import REPO, load_script, load_tool
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmhcg.analysis import benchmark
from mmhcg.analysis.operators import OperatorCounter, saved_bytes
from mmhcg.analysis.tables import machine, read_table, write_rows
from mmhcg.network import Trunk, deploy
from mmhcg.network.smg import SMG
from mmhcg.runs import UserError


def test_operators_and_bytes_by_hand():
    a, b = torch.ones(3, 4), torch.ones(3, 4)  # 48 bytes each
    with OperatorCounter() as counter:
        a.view(12).unsqueeze(0)  # views
        torch.empty(3, 4)  # an allocation
    assert (counter.calls, counter.moved) == (0, 0)
    with OperatorCounter() as counter:
        torch.add(a, b)  # two in, one out
        a.relu_()  # read and written
        torch.mul(a, b, out=torch.empty(3, 4))
    assert (counter.calls, counter.moved) == (3, (3 + 2 + 3) * 48)


def test_saved_bytes_by_hand():
    layer, image = nn.Linear(8, 4), torch.ones(2, 8, requires_grad=True)
    saved, out = saved_bytes(lambda: layer(image).exp(), layer.parameters())
    assert out.shape == (2, 4)
    assert saved == (2 * 8 + 2 * 4) * 4  # the layer keeps its input, exp its output; the weight is left out
    saved, _ = saved_bytes(lambda: image.sin() + image.cos(), [])
    assert saved == 2 * 8 * 4  # twice the same storage


class Probe(nn.Module):
    """A 1x1 convolution, which keeps its input for the backward pass, and what it has seen.

    Precisions, and whether gradients are followed.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.seen, self.follows = nn.Conv2d(3, 3, 1), set(), set()

    def forward(self, image):
        self.follows.add(torch.is_grad_enabled())
        autocast = (torch.ones(1, 1) @ torch.ones(1, 1)).dtype  # float32 without
        self.seen.add((image.dtype, autocast))
        return [self.conv(image)]


@pytest.mark.parametrize(('dtype', 'size'), [('fp32', 4), ('bf16', 2)])
def test_what_is_kept_is_counted_in_the_precision_that_is_timed(dtype, size):
    probe = Probe()
    (row,) = benchmark.compare(
        {'b': probe}, torch.ones(1, 3, 400, 500), phase='train', dtype=dtype, repeats=1
    )
    assert (
        row.saved_mb == 3 * 400 * 500 * size / 1e6
    )  # the map; the 18 bytes of a cast weight are rounded away
    assert probe.seen == {(torch.float32, benchmark.DTYPES[dtype])}


def test_inference_follows_no_gradient_and_keeps_nothing_for_one():
    probe = Probe()
    (row,) = benchmark.compare({'b': probe}, torch.ones(2, 3, 4, 5), repeats=2)
    assert probe.follows == {False}
    assert (row.saved_mb, row.peak_mb, row.to_r50) == ('', '', '')
    assert row.shape == '2 x 3 x 4 x 5'


class Part(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout())


class Staged(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.stages = Part(), nn.ModuleList([Part(), Part()])


@pytest.mark.parametrize('phase', ['train', 'infer'])
def test_the_recipe_of_coco_freezes_stem_and_first_stage_and_norms(phase):
    network = benchmark.as_in_coco(Staged(), phase)
    for part, is_trained in ((network.stem, False), (network.stages[0], False), (network.stages[1], True)):
        assert {parameter.requires_grad for parameter in part.parameters()} == {is_trained}
        modes = [module.training for module in part]
        assert modes == ([True, False, True] if is_trained and phase == 'train' else [False] * 3)


def test_times_are_the_best_and_the_median_and_images_are_all_of_the_batch():
    row = benchmark._speeds({'b': [9.0, 1.0, 2.0]}, images=4)['b']
    assert (row['best_ms'], row['median_ms'], row['images_per_s']) == (1000, 2000, 4)


def test_cores_are_those_that_are_used():
    torch.set_num_threads(3)
    assert machine(torch.device('cpu')).startswith('3 cores of ')


@dataclass(frozen=True)
class Pair:
    one: int
    two: str


def test_rows_replace_a_file_or_are_added_to_it(tmp_path):
    path = tmp_path / 'new' / 'rows.csv'
    write_rows([Pair(1, 'a')], path, add=True)
    write_rows([dict(one=2, two='b,c')], path, add=True)
    assert path.read_text() == 'one,two\n1,a\n2,"b,c"\n'
    with pytest.raises(ValueError, match='three'):
        write_rows([Pair(3, 'd'), dict(one=4, two='e', three=5)], path)
    assert path.read_text().endswith('"b,c"\n')  # what cannot be written whole is not there
    write_rows([Pair(5, 'f')], path)
    assert path.read_text() == 'one,two\n5,f\n'
    write_rows([], path, ['one', 'two'])
    assert path.read_text() == 'one,two\n'


@pytest.mark.parametrize('old', ['', 'one,two', 'one,two\n', 'one,two\r\n0,z\r\n', '\ufeffone,two\n0,z'])
def test_rows_are_added_below_the_header_in_lines_of_their_own(old, tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_bytes(old.encode())
    write_rows([Pair(1, 'a')], path, add=True)
    assert read_table(path) == [*([dict(one='0', two='z')] if 'z' in old else []), dict(one='1', two='a')]
    assert path.read_bytes().startswith(old.encode())


@pytest.mark.parametrize('old', ['one\n1\n', 'two,one\n', 'one;two\n', '\n', 'one,two,three\n'])
def test_rows_are_not_added_to_other_columns(old, tmp_path):
    path = tmp_path / 'rows.csv'
    path.write_text(old)
    with pytest.raises(UserError, match=r'rows\.csv is there and has other columns than one,two: '):
        write_rows([Pair(1, 'a')], path, add=True)
    assert path.read_text() == old


@pytest.mark.parametrize('add', [False, True])
def test_links_stay_links_and_pipes_pipes(add, tmp_path):
    link, path, pipe = tmp_path / 'link.csv', tmp_path / 'rows.csv', tmp_path / 'pipe'
    link.symlink_to(path)
    for _ in range(2):
        write_rows([Pair(1, 'a')], link, add=add)
    assert link.is_symlink() and path.read_text() == 'one,two\n1,a\n' + '1,a\n' * add
    os.mkfifo(pipe)
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_rows([Pair(1, 'a')], pipe, add=add)
    assert os.read(end, 99) == b'one,two\n1,a\n'
    os.close(end)
    assert sorted(tmp_path.iterdir()) == [link, pipe, path]


def test_deployed_networks_are_converted_all_of_them_and_without_autocast(monkeypatch):
    tool, probes = load_tool('benchmark'), {'plain': Probe(), 'r50': Probe()}
    monkeypatch.setattr(tool, 'networks', lambda *_: probes.items())
    tool.main(['--mode', 'deploy', '--dtype', 'bf16', '--shape', '1', '8', '8', '--repeats', '1'])
    for probe in probes.values():
        assert probe.seen == {(torch.bfloat16, torch.float32)}


def test_each_network_is_held_to_its_own_plain_formulation():
    names = ('b', 'b with_cp', 'c kernels', 'plain b', 'plain c', 'r50')
    best = dict(zip(names, (1.0, 2.0, 3.0, 4.0, 5.0, 8.0)))
    rows = benchmark._speeds({name: [9.0, seconds] for name, seconds in best.items()}, images=2)
    assert [rows[name]['to_plain'] for name in names] == [0.25, 0.5, 0.6, 1, 1, '']
    assert [rows[name]['to_r50'] for name in names] == [0.125, 0.25, 0.375, 0.5, 0.625, 1]
    assert benchmark._speeds({'b': [1.0], 'r50': [4.0], 'plain': [2.0]}, 1)['r50']['to_plain'] == 2


def test_each_architecture_has_its_plain_formulation(monkeypatch):
    tool = load_tool('benchmark')
    monkeypatch.setattr(tool, 'Trunk', str.upper)
    monkeypatch.setattr(tool, 'as_in_coco', lambda network, phase: network)
    monkeypatch.setitem(sys.modules, 'plain', SimpleNamespace(PlainHCGNet=str.title))
    made = dict(tool.networks(['b', 'c'], [], 'infer'))
    assert made == {'b': 'B', 'c': 'C', 'plain b': 'B', 'plain c': 'C'}
    assert [*dict(tool.networks(['c'], [], 'infer'))] == ['c', 'plain']


@pytest.mark.parametrize('of_others', [0, 10**9])
def test_memory_of_other_candidates_does_not_count(of_others, monkeypatch):
    network, image, peak = nn.Conv2d(3, 3, 1), torch.ones(1, 3, 8, 8), []
    weights = (3 * 3 + 3) * 4

    def allocated():
        gradients = 0 if network.weight.grad is None else weights
        return of_others + image.nbytes + weights + gradients

    def step():
        network(image).sum().backward()
        peak.append(allocated() + 1000)  # and maps

    monkeypatch.setattr(torch.cuda, 'memory_allocated', allocated)
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', peak.clear)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: max(peak))
    for _ in range(2):  # without gradients of a step before, and with them
        assert benchmark._peak(network, step, image) == image.nbytes + 2 * weights + 1000


@pytest.mark.slow
@pytest.mark.parametrize('options', [['--phase', 'train'], ['--mode', 'deploy', '--dtype', 'bf16']])
def test_benchmark_writes_what_it_prints(options, tmp_path, capsys):
    tool, path = load_tool('benchmark'), tmp_path / 'rows.csv'
    argv = [
        '--shape',
        '2',
        '128',
        '192',
        '--repeats',
        '2',
        '--csv',
        str(path),
        '--plot',
        str(tmp_path / 'plot.png'),
    ]
    tool.main([*argv, *options])
    tool.main([*argv, *options])  # adds its rows
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    train = '--phase' in options
    names = ['b', 'b with_cp', 'plain', 'r50'] if train else ['b', 'plain', 'r50']
    assert [row['candidate'] for row in rows] == 2 * names
    ours, plain, resnet = (rows[names.index(name)] for name in ('b', 'plain', 'r50'))
    assert float(plain['to_plain']) == float(resnet['to_r50']) == 1
    assert ours['shape'] == '2 x 3 x 128 x 192'
    if train:
        assert float(ours['saved_mb']) < 0.4 * float(plain['saved_mb'])
    else:
        assert int(ours['operators']) < int(plain['operators'])
    assert capsys.readouterr().out.count('to_plain') == 2
    assert (tmp_path / 'plot.png').stat().st_size > 5000


def counted_rows():
    """HCGNet-B's shipped rows whose operators were counted on a CPU."""
    with (REPO / 'benchmarks/results/backbones.csv').open(newline='', encoding='utf-8') as file:
        rows = [row for row in csv.DictReader(file) if row['operators'] and ' cores of ' in row['machine']]
    return [row for row in rows if row['model'] == 'backbone' and row['candidate'] in ('b', 'b with_cp')]


@pytest.mark.slow
@pytest.mark.parametrize(
    'row', counted_rows(), ids=lambda row: '-'.join((row['candidate'], row['phase'], row['mode']))
)
def test_shipped_counts_are_those_of_this_code(row):
    """Times are the machine's, but these numbers anyone can count again."""
    if f'PyTorch {torch.__version__} ' not in row['software']:
        pytest.skip(f'counted with {row["software"]}: other versions run other operators')
    trunk = benchmark.as_in_coco(Trunk('b', with_cp='with_cp' in row['candidate']), row['phase'])
    image = torch.randn(*map(int, row['shape'].split(' x ')))
    if row['mode'] == 'deploy':
        dtype = benchmark.DTYPES[row['dtype']]
        trunk, image = deploy(trunk.to(dtype)), image.to(dtype)
    how = row['phase'], row['dtype']
    benchmark._step(trunk, image[..., :64, :64], *how)()  # gradients are there, to be added to
    step = benchmark._step(trunk, image, *how)
    counts = benchmark._counts(trunk, step, image, row['phase'], row['mode'], row['dtype'])
    columns = ('saved_mb', 'operators', 'moved_mb')
    assert {column: str(counts[column]) for column in columns} == {column: row[column] for column in columns}


@pytest.mark.slow
def test_whole_detectors_are_measured_as_well(tmp_path, capsys):
    path = tmp_path / 'rows.csv'
    argv = [
        '--detector',
        '--phase',
        'train',
        '--shape',
        '1',
        '64',
        '96',
        '--repeats',
        '1',
        '--csv',
        str(path),
    ]
    load_tool('benchmark').main(argv)
    with path.open(newline='') as file:
        rows = {row['candidate']: row for row in csv.DictReader(file)}
    assert list(rows) == ['b', 'b with_cp', 'r50']
    assert {row['model'] for row in rows.values()} == {'Mask R-CNN'}
    assert float(rows['b']['saved_mb']) < float(rows['r50']['saved_mb'])


def test_a_detector_trains_and_predicts_masks():
    from mmhcg.analysis.mask_rcnn import MaskRCNN

    torch.manual_seed(0)
    detector = MaskRCNN('mask_rcnn_hcgnet_b_fpn_1x_coco', with_cp=True)
    trunk, image = detector.model.backbone, torch.randn(1, 3, 96, 128)
    assert {module.recomputes for module in trunk.modules() if isinstance(module, SMG)} == {
        'module',
        'excited',
    }
    for norm in trunk.modules():
        if isinstance(norm, _BatchNorm):
            assert not norm.running_var.allclose(torch.ones(()), atol=1e-3)
            assert norm.momentum == 0.1
    with torch.no_grad():
        assert 0.1 < trunk.eval()(image)[-1].std() < 10
    losses = detector.train()(image)
    assert len(losses) == 5 + 5 + 3  # of five levels of proposals, classes and boxes; classes, boxes, masks
    assert all(loss.isfinite() for loss in losses)
    with torch.no_grad():
        (result,) = detector.eval()(image)
    assert len(result.pred_instances.masks) == 100  # as many as it may


def test_gpu_script_runs_without_a_gpu_and_says_what_it_leaves_out(tmp_path, capsys, monkeypatch):
    gpu, path = load_script(REPO / 'benchmarks' / 'gpu.py'), tmp_path / 'rows.csv'
    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setattr(gpu, 'ON_CPU', ('deploy',))
    gpu.main(['--device', 'cpu', '--shape', '1', '33', '57', '--repeats', '1', '--out', str(path)])
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['candidate'], row['mode']) for row in rows] == [
        (name, 'deploy') for name in ('b', 'plain', 'r50')
    ]
    out = capsys.readouterr().out
    assert 'operators: left out, needs CUDA' in out and 'bf16 train graph: left out, needs CUDA' in out
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main(['--out', str(path)])
        assert 'sees no GPU' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('script', 'argv'), [('gpu', ['--device', 'cpu']), ('photographs', ['--data-root', 'none'])]
)
def test_scripts_refuse_files_of_other_columns_before_they_measure(
    script, argv, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, 'path', [*sys.path])
    (tmp_path / 'rows.csv').write_text('a,b\n')
    with pytest.raises(SystemExit):
        import_module(script).main([*argv, '--out', str(tmp_path / 'rows.csv')])
    assert 'rows.csv is there and has other columns than ' in capsys.readouterr().err


def test_a_mode_that_fails_leaves_the_others(tmp_path, capsys, monkeypatch):
    gpu, tried = load_script(REPO / 'benchmarks' / 'gpu.py'), []

    def main(argv):
        tried.append(argv[argv.index('--phase') + 1])
        raise RuntimeError('out of memory')

    monkeypatch.setattr(sys, 'path', [*sys.path])
    monkeypatch.setitem(sys.modules, 'benchmark', SimpleNamespace(main=main, parse=list, COMPILED={}))
    with pytest.raises(SystemExit, match='failed: fp32 infer eager, fp32 infer deploy, fp32 train eager'):
        gpu.main(['--device', 'cpu', '--out', str(tmp_path / 'rows.csv')])
    assert tried == ['infer', 'infer', 'train']
    assert 'out of memory' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        (['--mode', 'deploy', '--phase', 'train'], 'cannot be trained'),
        (['--mode', 'deploy-graph', '--phase', 'train'], 'cannot be trained'),
        (['--mode', 'graph'], 'needs --device cuda'),
        (['--repeats', '0'], 'must be positive'),
    ],
)
def test_benchmark_refuses_what_cannot_be_measured(argv, message, capsys):
    with pytest.raises(SystemExit):
        load_tool('benchmark').main(argv)
    assert message in capsys.readouterr().err
