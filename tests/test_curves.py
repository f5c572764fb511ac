"""tools/compare_runs.py on logs written by hand and on those of a run that was resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import pytest
from tiny_run import load_tool, write_config, write_data

from mmhcg.analysis.curves import read_runs
from mmhcg.runs import UserError, train


def write_log(work_dir: Path, time: str, *lines: dict, torn: str = '') -> None:
    path = work_dir / time / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines) + torn)


def step(number: int, loss: float, seconds: float = 0.5, **more: float) -> dict:
    return dict(lr=0.1, loss=loss, time=seconds, iter=number, step=number, **more)


def scores(box: float, mask: float, epoch: int) -> dict:
    """As after an epoch: `step` counts epochs, `time` is that of a prediction."""
    return {'coco/bbox_mAP': box, 'coco/segm_mAP': mask, 'coco/bbox_mAP_50': 0.9, 'time': 9, 'step': epoch}


def test_a_resumed_run_is_one_curve(tmp_path):
    first = [step(10, 5.0), step(20, 4.0), scores(0.1, 0.05, 1), step(30, 8.0), step(40, 9.0)]
    first += [scores(0.9, 0.9, 2), step(50, 9.5)]  # lost: it was killed and had saved nothing after 20
    write_log(tmp_path, '20250101_000000', *first, torn='{"lr": 0.1, "lo')
    # It goes on from iteration 20, where the first epoch ended; its second epoch ends at 40.
    write_log(tmp_path, '20250101_100000', step(30, 3.0), step(40, 2.0), scores(0.2, 0.15, 2))
    (tmp_path / '20250101_200000').mkdir()  # as tools/test.py leaves
    (run,) = read_runs([tmp_path])
    assert run.name == tmp_path.name
    assert run.curve('loss') == ([10, 20, 30, 40], [5.0, 4.0, 3.0, 2.0])
    assert run.curve('box AP') == ([20, 40], [10.0, 20.0])
    assert run.curve('mask AP') == ([20, 40], [5.0, 15.0])


def test_scores_before_a_loss_are_of_where_the_run_before_ended(tmp_path):
    write_log(tmp_path, '20250101_000000', step(10, 5.0), step(20, 4.0))  # killed while it predicted
    write_log(tmp_path, '20250101_100000', scores(0.2, 0.1, 1), step(30, 3.0), scores(0.3, 0.2, 2))
    (run,) = read_runs([tmp_path])
    assert run.curve('box AP') == ([20, 30], [20.0, 30.0])


def test_a_run_that_began_anew_forgets_the_old_one(tmp_path):
    write_log(tmp_path, '20250101_000000', step(10, 5.0), scores(0.9, 0.9, 1))
    write_log(tmp_path, '20250102_000000', step(10, 4.0))
    (run,) = read_runs([tmp_path])
    assert (run.curve('loss'), run.curve('box AP')) == (([10], [4.0]), ([], []))


def test_the_table_has_best_and_last_time_and_memory(tmp_path, capsys):
    lines = [step(10, 5.0, 9.0, memory=100), step(20, 4.0, 0.25, memory=300), scores(0.3, 0.25, 1)]
    write_log(
        tmp_path / 'one', '20250101_000000', *lines, step(30, 3.5, 0.125, memory=200), scores(0.2, -1, 2)
    )
    write_log(tmp_path / 'a' / 'two', '20250101_000000', step(50, 1.0), {'accuracy/top1': 42.5, 'step': 1})
    write_log(tmp_path / 'b' / 'two', '20250101_000000', step(60, 2.0), scores(float('nan'), -1, 1))
    table, plot = tmp_path / 'out' / 'table.csv', tmp_path / 'out' / 'runs.png'
    folders = [str(tmp_path / name) for name in ('one', 'a/two', 'b/two')]
    for _ in range(2):  # its own files it replaces
        capsys.readouterr()
        load_tool('compare_runs').main([*folders, '--csv', str(table), '--plot', str(plot)])
    with table.open(newline='') as file:
        one, two, other = csv.DictReader(file)
    assert (two['run'], other['run']) == (folders[1], folders[2])  # their last names are the same
    assert one == dict(
        run='one',
        iterations='30',
        last_loss='3.5',
        best_box_AP='30.0',
        last_box_AP='20.0',
        best_mask_AP='25.0',
        last_mask_AP='25.0',  # -1: nothing was there to be found
        **{'best_top-1_accuracy': '', 'last_top-1_accuracy': ''},
        peak_mb='300',
        ms_per_iteration='250.0',  # the median: the first ones are slow
    )
    assert (two['best_box_AP'], two['peak_mb'], two['ms_per_iteration']) == ('', '', '500.0')
    assert two['last_top-1_accuracy'] == '42.5'  # the log's are percent
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == list(one)
    for row, run in zip(rows, (one, two, other)):
        assert row.split() == [value or '-' for value in run.values()]
    with plot.with_suffix('.csv').open(newline='') as file:
        points = [tuple(point.values()) for point in csv.DictReader(file)]
    assert ('one', 'box AP', '20', '30.0') in points
    assert len(points) == 3 + 2 + 1 + 1 + 1 + 1
    assert cv2.imread(str(plot)).std() > 5


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda path: None, 'no folder'),
        (lambda path: path.mkdir(), 'scalars.json and holds none'),
        (lambda path: write_log(path, '20250101_000000', torn='{"lr'), 'holds 1 empty'),
        (lambda path: write_log(path, '20250101_000000', torn='{"lr\n{}\n'), 'line 1 is damaged'),
        (lambda path: write_log(path, '20250101_000000', 3, step(10, 5.0)), 'line 1 is damaged: no dict'),
        (
            lambda path: write_log(path, '2025', dict(loss=5.0), step(10, 5.0)),
            'damaged: no dict with a `step`',
        ),
        (
            lambda path: write_log(path, '2025', scores(None, 0.1, 1), step(1, 5.0)),
            '`coco/bbox_mAP` is None and',
        ),
        (
            lambda path: write_log(path, '2025', step(10, 5.0, 'slow'), {}),
            "line 1 is damaged: `time` is 'slow'",
        ),
        (lambda path: write_log(path, '2025', torn='{"loss": 3}\n'), 'holds 1 empty'),
    ],
)
def test_folders_without_logs_are_refused(make, message, tmp_path):
    make(tmp_path / 'run')
    with pytest.raises(UserError, match=message):
        read_runs([tmp_path / 'run'])


def test_names_of_files_are_refused_before_work(tmp_path, capsys):
    tool = load_tool('compare_runs')
    for options, message in (
        (['--plot', 'runs.foo'], 'must end in .png'),
        (['--plot', 'runs.png', '--csv', './runs.csv'], 'another name'),
    ):
        with pytest.raises(SystemExit) as stop:
            tool.main([str(tmp_path), *options])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_logs_of_a_real_run(tmp_path):
    config, data = write_config(tmp_path), write_data(tmp_path)
    common = dict(work_dir=tmp_path / 'run', data_root=data)
    train(config, cfg_options={'train_cfg.max_epochs': 1}, no_pretrained=True, seed=0, **common)
    runner = train(config, resume=True, **common)
    (run,) = read_runs([tmp_path / 'run'])
    steps, losses = run.curve('loss')
    assert steps == list(range(1, runner.iter + 1))
    assert min(losses) > 0
    assert run.curve('box AP')[0] == run.curve('mask AP')[0] == [runner.iter // 2, runner.iter]
    last = json.loads(max(tmp_path.glob('run/*/vis_data/scalars.json')).read_text().splitlines()[-1])
    assert run.curve('box AP')[1][-1] == pytest.approx(100 * last['coco/bbox_mAP'])
    assert run.row()['ms_per_iteration'] > 0
