"""The run through MMDetection's configs: sorted, resumed, and stopped by nothing."""

import csv
import os
import time
from dataclasses import replace

import pytest
import yaml
from tiny_run import REPO, load_tool

from mmhcg.analysis.tables import read_table, write_rows
from mmhcg.runs import UserError
from mmhcg.swap import zoo
from mmhcg.swap.zoo import Row, all_configs, build_both, run_zoo

RETINANET = 'retinanet/retinanet_r18_fpn_1x_coco.py'


def test_all_configs_are_those_that_mmdetection_has_trained_and_no_bases():
    configs = set(all_configs())
    trained = set()  # by the metafiles, which name the config of each published checkpoint
    for path in zoo.CONFIGS.glob('*/metafile.yml'):
        content = yaml.safe_load(path.read_text(encoding='utf-8'))  # of models, or of collections and models
        models = content if isinstance(content, list) else content.get('Models') or []
        trained |= {model['Config'].removeprefix('configs/') for model in models if 'Config' in model}
    trained = {name for name in trained if (zoo.CONFIGS / name).is_file()}  # some of its links lead nowhere
    assert len(trained) > 400
    assert trained <= configs
    bases = {path.relative_to(zoo.CONFIGS).as_posix() for path in zoo.CONFIGS.rglob('_base_/**/*.py')}
    assert bases and not bases & configs
    everything = {path.relative_to(zoo.CONFIGS).as_posix() for path in zoo.CONFIGS.rglob('*.py')}
    assert configs | bases == everything


def test_a_family_is_tried_until_one_of_its_configs_runs(tmp_path, monkeypatch):
    sizes = {'a/big.py': 3, 'a/broken.py': 1, 'a/small.py': 2, 'b/only.py': 9}
    sizes |= {'c/unbuilt.py': 1, 'd/broken.py': 5}
    tried = []

    def build(name):
        return Row(name, 'replaceable', parameters=sizes[name], built='no' if name[0] == 'c' else 'ok')

    def control(row):
        tried.append(row.config)
        return replace(row, control='fails' if 'broken' in row.config else 'ok')

    monkeypatch.setattr(zoo, 'all_configs', lambda: list(sizes))
    jobs_of = {}
    monkeypatch.setattr(
        zoo, '_each', lambda f, arguments, jobs: jobs_of.update({f: jobs}) or map(f, arguments)
    )
    monkeypatch.setattr(zoo, 'build_both', build)
    monkeypatch.setattr(zoo, 'run_control', control)
    monkeypatch.setattr(zoo, 'run_swapped', lambda row: replace(row, swapped='ok'))
    rows = {row.config: (row.control, row.swapped) for row in run_zoo(tmp_path / 'zoo.csv', jobs=5)}
    assert list(jobs_of.values()) == [5, 5, 5]
    assert tried == ['a/broken.py', 'd/broken.py', 'b/only.py', 'a/small.py']
    assert rows == {
        'a/big.py': ('', ''),
        'a/broken.py': ('fails', ''),
        'a/small.py': ('ok', 'ok'),
        'b/only.py': ('ok', 'ok'),
        'c/unbuilt.py': ('', ''),
        'd/broken.py': ('fails', ''),
    }
    assert [row['config'] for row in zoo.read_table(tmp_path / 'zoo.csv')] == sorted(sizes)


@pytest.mark.parametrize(
    ('name', 'status', 'built', 'reason'),
    [
        (RETINANET, 'replaceable', 'ok', ''),
        ('common/ms_3x_coco.py', 'no backbone', '', ''),
        ('tridentnet/tridentnet_r50-caffe_1x_coco.py', 'refused', '', 'shared_head'),
        ('boxinst/absent.py', 'broken before', '', 'no config file'),
    ],
)
def test_configs_are_sorted_with_the_reason(name, status, built, reason):
    row = build_both(name)
    assert (row.config, row.status, row.built) == (name, status, built)
    assert reason in row.reason and bool(reason) == bool(row.reason)
    assert (row.parameters > 10_000_000) == (status in ('replaceable', 'refused'))


def test_a_reason_is_one_line_without_folders_of_this_machine():
    error = UserError(f'no\n  map in {zoo.CONFIGS}/a/b.py, nor in /home/me/c.py: {"x" * 300}')
    told = zoo._short(error)
    assert told.startswith('UserError: no map in a/b.py, nor in (path): xxx') and len(told) == 300
    error.__cause__ = KeyError('type')
    assert zoo._short(error).startswith('KeyError: no map')


def crash(argument):
    if argument == 'crash':
        os._exit(3)
    if argument == 'hang':
        time.sleep(60)
    if argument == 'raise':
        raise RuntimeError
    return Row(argument, 'replaceable', built='ok')


@pytest.mark.slow
def test_nothing_stops_the_others(monkeypatch):
    monkeypatch.setattr(zoo, 'SECONDS', 1)
    names = ['crash', 'one', 'hang', 'raise', 'two']
    rows = {row.config: row for row in zoo._each(crash, names, jobs=2)}
    assert rows.keys() == set(names)
    assert rows['one'].status == rows['two'].status == 'replaceable'
    assert rows['crash'].status == 'crashed' and 'ended with 3' in rows['crash'].reason
    assert 'more than 1 seconds' in rows['hang'].reason
    assert 'ended with 1' in rows['raise'].reason


@pytest.mark.slow
def test_a_second_run_goes_on_where_the_first_ended(monkeypatch, tmp_path, capsys):
    names = ['common/ms_3x_coco.py', RETINANET]
    monkeypatch.setattr(zoo, 'all_configs', lambda: names[:1])
    assert [row.status for row in run_zoo(tmp_path / 'zoo.csv', jobs=1)] == ['no backbone']
    monkeypatch.setattr(zoo, 'all_configs', lambda: names)
    built = []
    monkeypatch.setattr(
        zoo, '_each', lambda f, arguments, jobs: built.append((f, arguments)) or map(f, arguments)
    )
    tool = load_tool('swap_zoo')
    tool.main(['--csv', str(tmp_path / 'zoo.csv'), '--jobs', '1'])
    assert [arguments for function, arguments in built if function is build_both] == [names[1:]]
    out = capsys.readouterr().out
    assert '2 configs: 1 no backbone, 1 replaceable' in out
    assert 'build: 1 of 1' in out
    assert 'families whose control runs: 1; of these run swapped: 1' in out
    (row,) = (row for row in read_table(tmp_path / 'zoo.csv') if row['config'] == RETINANET)
    assert (row['control'], row['swapped']) == ('ok', 'ok')
    assert int(row['parameters']) > 20_000_000


def test_a_backbone_without_gradient_is_not_called_ok(monkeypatch):
    from mmhcg.swap.rehearsal import Rehearsal

    monkeypatch.setattr(zoo, 'rehearse', lambda model: Rehearsal({'loss': 1.0}, tuple('abcd'), 0))
    row = zoo.run_swapped(Row(RETINANET, 'replaceable', built='ok', control='ok'))
    assert row.swapped == 'no gradient: a, b, c'


@pytest.mark.parametrize(('run', 'field'), [(zoo.run_control, 'control'), (zoo.run_swapped, 'swapped')])
def test_a_detector_that_does_not_run_has_the_reason(monkeypatch, run, field):
    def fail(model):
        raise RuntimeError('no loss')

    monkeypatch.setattr(zoo, 'rehearse', fail)
    row = Row(RETINANET, 'replaceable', built='ok', control='ok')
    assert run(row) == replace(row, **{field: 'RuntimeError: no loss'})


def test_what_fails_after_the_original_was_built_is_our_fault(monkeypatch):
    def fail(cfg):
        raise RuntimeError('ours')

    monkeypatch.setattr(zoo, 'swap_backbone', fail)
    row = build_both(RETINANET)
    assert (row.config, row.status, row.reason) == (RETINANET, 'replaceable', '')
    assert row.built == 'RuntimeError: ours'
    assert row.parameters > 10_000_000


def hold(path):
    with open(path, 'x'):
        os.write(1, b'noise')
        os.write(2, b'noise')
        time.sleep(0.1)
    os.remove(path)
    return Row(path, 'no backbone')


def test_no_more_run_at_once_than_asked_for_and_in_silence(tmp_path, capfd):
    rows = list(zoo._each(hold, [str(tmp_path / 'held')] * 3, jobs=1))
    assert [row.status for row in rows] == ['no backbone'] * 3
    assert capfd.readouterr() == ('', '')


def die(row):
    os._exit(9)


@pytest.mark.slow
@pytest.mark.parametrize(('control', 'field'), [('', 'control'), ('ok', 'swapped')])
def test_a_crash_is_booked_where_it_happened(control, field):
    (row,) = zoo._each(die, [Row(RETINANET, 'replaceable', built='ok', control=control)], jobs=1)
    assert getattr(row, field) == 'its process ended with 9'


def test_shipped_results_meet_the_bar():
    with (REPO / 'benchmarks/results/zoo.csv').open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len({row['config'] for row in rows}) > 800
    assert {row['built'] for row in rows if row['status'] == 'replaceable'} == {'ok'}
    control, swapped = (
        {row['config'].split('/')[0] for row in rows if row[step] == 'ok'} for step in ('control', 'swapped')
    )
    assert len(control) >= 75
    assert swapped == control


def test_rows_of_other_software_are_not_kept(tmp_path, monkeypatch):
    path = tmp_path / 'zoo.csv'
    rows = [zoo.Row('a/a.py', 'no backbone'), zoo.Row('a/b.py', 'no backbone', software='another')]
    write_rows(rows, path)
    monkeypatch.setattr(zoo, 'all_configs', lambda: ['a/a.py', 'a/b.py'])
    asked = []
    monkeypatch.setattr(zoo, '_each', lambda function, names, jobs: asked.append(list(names)) or [])
    assert [row.config for row in zoo.run_zoo(path)] == ['a/a.py']
    assert asked[0] == ['a/b.py']


def test_a_file_of_other_columns_and_no_jobs_are_refused(tmp_path, capsys):
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    for argv, message in (
        (
            ['--csv', str(tmp_path / 'other.csv')],
            f'the table {tmp_path}/other.csv is there and has other columns than config,status,',
        ),
        (['--csv', str(tmp_path / 'new.csv'), '--jobs', '0'], '--jobs must be 1 or more'),
    ):
        with pytest.raises(SystemExit):
            load_tool('swap_zoo').main(argv)
        assert message in capsys.readouterr().err


def test_a_stopped_run_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, 'run_zoo', stop)
    with pytest.raises(SystemExit):
        load_tool('swap_zoo').main(['--csv', str(tmp_path / 'zoo.csv')])
    assert 'the same command goes on from there' in capsys.readouterr().err
