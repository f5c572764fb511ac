"""The demo from data to pictures, with a handful of images and iterations."""

import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import HOOKS
from tiny_run import CONFIGS, REPO
from torch import nn

from mmhcg.data import scenes
from mmhcg.runs import UserError, channels_last
from mmhcg.runs import demo as demo_module
from mmhcg.runs.demo import run_demo

CONFIG = CONFIGS / 'mask_rcnn_hcgnet_demo_shapes.py'
ITERATIONS, SEED = 3, 5
COCO_NUMBERS = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
COCO_NUMBERS += ['AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_m@100', 'AR_l@100']
SHORT = {
    'train_cfg.max_iters': ITERATIONS,
    'default_hooks.checkpoint.interval': ITERATIONS,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
    # After three iterations nothing is sure: without a threshold there are boxes and masks to score.
    'model.test_cfg.rcnn.score_thr': 0.0,
}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """The folder of a demo that was run twice, and the scores that each run returned."""
    work_dir = tmp_path_factory.mktemp('demo') / 'work'
    scores = [run_demo(CONFIG, work_dir, SEED, images=8, val_images=5, cfg_options=SHORT) for _ in range(2)]
    return work_dir, scores


@pytest.mark.slow
def test_scores_hold_all_of_cocos_numbers(demo):
    work_dir, (_, scores) = demo
    assert json.loads((work_dir / 'scores.json').read_text()) == scores
    for metric in ('bbox', 'segm'):
        assert all(-1 <= scores[f'{metric}_{name}'] <= 1 for name in COCO_NUMBERS)
    assert (scores['seed'], scores['iterations']) == (SEED, ITERATIONS)
    assert scores['seconds']['all'] >= scores['seconds']['train'] > 0


@pytest.mark.slow
def test_log_and_checkpoint_are_there(demo):
    work_dir, _ = demo
    assert (work_dir / f'iter_{ITERATIONS}.pth').is_file()
    assert len(list(work_dir.glob('2*/2*.log'))) == 2  # of training and of testing


@pytest.mark.slow
def test_pictures_show_truth_beside_detections(demo):
    work_dir, _ = demo
    pictures = sorted((work_dir / 'pictures').iterdir())
    assert pictures[-1].name == 'overview.png'
    assert 1 <= len(pictures) - 1 <= 5
    height, width = cv2.imread(str(pictures[0])).shape[:2]
    assert width == 2 * height > 2 * 128
    overview = cv2.imread(str(pictures[-1]))
    assert overview.shape[0] > height
    assert overview.std() > 20


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(UserError, match='name another folder'):
        run_demo(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_demo_that_was_stopped_before_it_had_data_starts_again(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    monkeypatch.setattr(demo_module, 'make_shapes', lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_demo(CONFIG, tmp_path)


@pytest.mark.slow
def test_the_earlier_demo_is_kept(demo):
    work_dir, (scores, _) = demo
    earlier = work_dir / 'earlier_1'
    assert json.loads((earlier / 'scores.json').read_text()) == scores
    assert (earlier / f'iter_{ITERATIONS}.pth').is_file()
    assert (earlier / 'pictures' / 'overview.png').is_file()
    assert not (work_dir / 'earlier_2').exists()
    assert len(list((work_dir / 'data').iterdir())) == 1


def test_the_recipe_is_one_for_these_shapes():
    cfg = Config.fromfile(CONFIG)
    heads = cfg.model.roi_head
    assert tuple(cfg.train_dataloader.dataset.metainfo.classes) == scenes.CLASSES
    assert heads.bbox_head.num_classes == heads.mask_head.num_classes == len(scenes.CLASSES)
    assert cfg.model.backbone.type == 'mmhcg.HCGNet'
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters


@pytest.mark.parametrize('compiled', [False, True])
def test_the_recipe_keeps_channels_innermost_where_the_operators_allow_it(compiled, monkeypatch):
    monkeypatch.setattr(channels_last, 'has_compiled_mmcv', lambda: compiled)
    cfg = Config.fromfile(CONFIG)
    hook = HOOKS.build(cfg.custom_hooks[0])
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).double()
    image = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    before = model(image)
    hook.before_run(SimpleNamespace(model=model, logger=logging.getLogger()))
    after = model(image)
    assert after.is_contiguous(memory_format=torch.channels_last) != compiled
    torch.testing.assert_close(after, before)


@pytest.mark.slow
def test_command_line_explains_itself():
    command = [sys.executable, str(REPO / 'tools' / 'demo.py'), '--help']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0
    assert '--seed' in done.stdout
