"""tools/train.py and tools/test.py from end to end: train, resume, score, dump and draw."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny_run import REPO, load_tool, read_scalars, write_config, write_data

from mmhcg.stack.checkpoints import load_checkpoint_file
from mmhcg.weights import save_weights

pytestmark = pytest.mark.slow

PHOTOS = Path(os.environ.get('MMHCG_TINY_COCO', REPO.parent / 'shared/data/tiny_coco'))
CONFIG = REPO / 'configs/mask_rcnn_hcgnet_b_fpn_1x_coco.py'


def run_tool(name: str, *argv: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPO / 'tools' / f'{name}.py'), *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def printed_numbers(text: str) -> list[list[float]]:
    """The summaries that pycocotools printed, twelve numbers each."""
    numbers = [float(number) for number in re.findall(r'\(A[PR]\).* = (-?\d\.\d+)', text)]
    assert 'maxDets=  1 ]' in text
    assert len(numbers) % 12 == 0
    return [numbers[start : start + 12] for start in range(0, len(numbers), 12)]


def score_dump(dump: Path, annotations: Path, kind: str) -> list[float]:
    """The twelve numbers that pycocotools gives for the predictions of `--out`."""
    truth = COCO(str(annotations))
    categories = sorted(truth.cats)
    results = []
    for sample in pickle.loads(dump.read_bytes()):
        found = sample['pred_instances']
        for index, label in enumerate(found['labels'].tolist()):
            result = dict(image_id=sample['img_id'], category_id=categories[label])
            result['score'] = float(found['scores'][index])
            if kind == 'bbox':
                x1, y1, x2, y2 = found['bboxes'][index].tolist()
                result['bbox'] = [x1, y1, x2 - x1, y2 - y1]
            else:
                result['segmentation'] = found['masks'][index]
            results.append(result)
    assert results
    scores = COCOeval(truth, truth.loadRes(results), kind)
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    return [round(number, 3) for number in scores.stats]


def progress(work_dir: Path) -> list[tuple]:
    """Epoch, iteration and learning rate of every logged training step of the newest run."""
    return [(line['epoch'], line['step'], line['lr']) for line in read_scalars(work_dir) if 'lr' in line]


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """A folder with tiny.py, shapes/ and the work dirs `full`, two epochs at once, and `half`, one and then
    one more. `first.json` is what was logged of `half` before it was resumed.
    """
    folder = tmp_path_factory.mktemp('tools')
    write_config(folder)
    data = write_data(folder)
    options = ['--data-root', data, '--no-pretrained', '--seed', 5]
    done = run_tool('train', 'tiny.py', '--work-dir', 'full', *options, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'nothing is frozen' in done.stdout
    assert 'eta:' in done.stdout
    # Within one process from here on: starting one takes longer than these runs.
    argv = [
        folder / 'tiny.py',
        '--work-dir',
        folder / 'half',
        *options,
        '--cfg-options',
        'train_cfg.max_epochs=1',
    ]
    load_tool('train').main([str(arg) for arg in argv])
    (folder / 'first.json').write_text(json.dumps(progress(folder / 'half')))
    argv = [folder / 'tiny.py', '--data-root', data, '--work-dir', folder / 'half', '--resume']
    load_tool('train').main([str(arg) for arg in argv])
    return folder


def test_resume_continues_epoch_iteration_and_learning_rate(trained):
    steps = progress(trained / 'full')
    first, second = ([step for step in steps if step[0] == epoch] for epoch in (1, 2))
    assert len(first) == len(second) == len(steps) / 2 > 1
    assert steps == sorted(steps, key=lambda step: step[1:])  # iteration and, in the warm-up, rate go up
    assert json.loads((trained / 'first.json').read_text()) == [list(step) for step in first]
    assert progress(trained / 'half') == second
    common = [str(trained / 'tiny.py'), '--data-root', str(trained / 'shapes')]
    named = ['--work-dir', str(trained / 'named'), '--resume', str(trained / 'half/epoch_1.pth')]
    load_tool('train').main([*common, *named])
    assert progress(trained / 'named') == second


def test_resumed_run_stays_unfrozen_without_the_flag(trained):
    """A config that freezes a stage would otherwise freeze half-trained random weights."""
    log = max((trained / 'half').glob('*/*.log')).read_text()
    assert 'nothing is frozen' in log
    before, after = (
        load_checkpoint_file(trained / 'half' / name)['state_dict'] for name in ('epoch_1.pth', 'epoch_2.pth')
    )
    stem = next(key for key in before if key.startswith('backbone.stem') and key.endswith('weight'))
    assert not torch.equal(before[stem], after[stem])


def test_the_seed_decides_the_weights(trained):
    full, half = (
        torch.load(trained / name / 'epoch_1.pth', weights_only=False)['state_dict']
        for name in ('full', 'half')
    )
    for key, value in full.items():
        torch.testing.assert_close(value, half[key], msg=key)


def test_test_prints_dumps_and_draws(trained):
    argv = ['--data-root', 'shapes', '--out', 'results.pkl', '--show-dir', 'drawn', '--work-dir', 'tested']
    done = run_tool('test', 'tiny.py', 'full/epoch_2.pth', *argv, cwd=trained)
    assert done.returncode == 0, done.stderr[-3000:]
    annotations = trained / 'shapes/annotations/instances_val2017.json'
    printed = printed_numbers(done.stdout)
    assert printed == [score_dump(trained / 'results.pkl', annotations, kind) for kind in ('bbox', 'segm')]
    assert any(number > 0 for number in printed[0])  # else nothing was compared
    pictures = sorted((trained / 'drawn').iterdir())
    assert [picture.name for picture in pictures] == sorted(os.listdir(trained / 'shapes/val2017'))
    for picture in pictures:
        drawn = cv2.imread(str(picture))
        assert drawn.shape == (64, 128, 3)  # ground truth beside detections
        assert not np.array_equal(drawn[:, :64], drawn[:, 64:])


def test_test_scores_safetensors_as_the_checkpoint(trained, capfd):
    state = load_checkpoint_file(trained / 'full/epoch_2.pth')['state_dict']
    save_weights(state, trained / 'weights.safetensors')
    printed = []
    for file in ('full/epoch_2.pth', 'weights.safetensors'):
        argv = [trained / 'tiny.py', trained / file, '--data-root', trained / 'shapes']
        load_tool('test').main([str(arg) for arg in (*argv, '--work-dir', trained / 'tested')])
        printed.append(printed_numbers(capfd.readouterr().out))
    assert printed[0] == printed[1] and any(number > 0 for number in printed[0][0])


def test_mistakes_end_in_one_message_and_exit_code_2(trained):
    done = run_tool('train', CONFIG, '--data-root', 'shapes', cwd=trained)
    assert done.returncode == 2
    assert done.stderr.startswith('error: no pretrained weights')
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('name', ['robustness', 'dissect', 'visualize', 'compare_runs', 'make_cifar'])
def test_help_says_in_capitals_what_stands_where(name, capsys):
    with pytest.raises(SystemExit):
        load_tool(name).main(['--help'])
    told = capsys.readouterr().out
    assert re.findall(r'^  ([A-Z]\S+) ', told, re.M)
    assert not re.findall(r'^  ([a-z]\S+) ', told, re.M)
    assert not re.findall(r'--(?:out|data-root|csv|plot) (?!DIR|FILE)', told)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f'needs photographs of COCO in {PHOTOS} (MMHCG_TINY_COCO)')
def test_shipped_config_trains_resumes_and_scores_on_photographs(tmp_path, capfd):
    small = [
        '--cfg-options',
        'train_dataloader.batch_size=4',  # two images are too few for norms that learn
        *(f'{mode}_dataloader.dataset.indices=8' for mode in ('train', 'val', 'test')),
        *(f'{mode}_dataloader.num_workers=0' for mode in ('train', 'val', 'test')),
        *(f'{mode}_dataloader.persistent_workers=False' for mode in ('train', 'val', 'test')),
        'train_dataloader.dataset.pipeline.2.scale=(320,192)',
        'val_dataloader.dataset.pipeline.1.scale=(320,192)',
        'test_dataloader.dataset.pipeline.1.scale=(320,192)',
        'model.train_cfg.rpn_proposal.max_per_img=100',
        'model.train_cfg.rcnn.sampler.num=32',
        'model.test_cfg.rpn.max_per_img=50',
        'model.test_cfg.rcnn.max_per_img=20',
        'model.test_cfg.rcnn.score_thr=0.0',
        'default_hooks.logger.interval=1',
        # Four iterations from random weights are too few for running averages that change by a tenth each.
        'model.backbone.norm_cfg.momentum=0.5',
    ]
    common = [str(CONFIG), '--data-root', str(PHOTOS)]
    work_dir = ['--work-dir', str(tmp_path)]
    train, test = load_tool('train').main, load_tool('test').main
    train([*common, *work_dir, '--no-pretrained', *small, 'train_cfg.max_epochs=1'])
    epoch_one = progress(tmp_path)
    train([*common, *work_dir, '--resume', *small, 'train_cfg.max_epochs=2'])
    epoch_two = progress(tmp_path)
    assert [step[:2] for step in epoch_one + epoch_two] == [(1, 1), (1, 2), (2, 3), (2, 4)]
    # Linear warm-up over 500 iterations, from a thousandth of 0.02 to all of it
    expected = [0.02 * (0.001 + 0.999 * i / 499) for i in range(4)]
    assert [step[2] for step in epoch_one + epoch_two] == pytest.approx(expected, rel=1e-6)
    capfd.readouterr()
    test([*common, str(tmp_path / 'epoch_2.pth'), '--out', str(tmp_path / 'results.pkl'), *work_dir, *small])
    printed = printed_numbers(capfd.readouterr().out)
    annotations = PHOTOS / 'annotations/instances_val2017.json'
    assert printed == [score_dump(tmp_path / 'results.pkl', annotations, kind) for kind in ('bbox', 'segm')]
