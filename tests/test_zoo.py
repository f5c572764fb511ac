"""The run through MMDetection's configs: sorted, resumed, and stopped by nothing."""

import csv
import os
import time

import pytest
from tiny_run import REPO, load_tool

from mmhcg.analysis import zoo
from mmhcg.analysis.zoo import Row, all_configs, build_both, run_zoo

RETINANET = 'retinanet/retinanet_r18_fpn_1x_coco.py'


def test_all_configs_are_those_that_one_can_train():
    configs = all_configs()
    assert RETINANET in configs
    assert not [name for name in configs if name.startswith('_base_') or '/_base_/' in name]
    assert len(configs) > 700


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
    assert reason in row.reason


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
    assert 'ended with 3' in rows['crash'].reason
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
    (row,) = (row for row in zoo._read(tmp_path / 'zoo.csv') if row.config == RETINANET)
    assert (row.control, row.swapped) == ('ok', 'ok')
    assert row.parameters > 20_000_000


def test_a_backbone_without_gradient_is_not_called_ok(monkeypatch):
    from mmhcg.analysis.rehearsal import Rehearsal

    monkeypatch.setattr(zoo, 'rehearse', lambda model: Rehearsal({'loss': 1.0}, ('stem.0.conv.weight',), 0))
    row = zoo.run_swapped(Row(RETINANET, 'replaceable', built='ok', control='ok'))
    assert row.swapped == 'no gradient: stem.0.conv.weight'


def test_what_fails_after_the_original_was_built_is_our_fault(monkeypatch):
    def fail(cfg):
        raise RuntimeError('ours')

    monkeypatch.setattr(zoo, 'swap_backbone', fail)
    row = build_both(RETINANET)
    assert (row.status, row.built) == ('replaceable', 'RuntimeError: ours')


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
    zoo._write(path, rows)
    monkeypatch.setattr(zoo, 'all_configs', lambda: ['a/a.py', 'a/b.py'])
    asked = []
    monkeypatch.setattr(zoo, '_each', lambda function, names, jobs: asked.append(list(names)) or [])
    assert [row.config for row in zoo.run_zoo(path)] == ['a/a.py']
    assert asked[0] == ['a/b.py']


def test_a_file_of_other_columns_and_no_jobs_are_refused(tmp_path, capsys):
    (tmp_path / 'other.csv').write_text('a,b\n1,2\n')
    for argv, message in (
        (['--csv', str(tmp_path / 'other.csv')], 'is no file of this tool'),
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
