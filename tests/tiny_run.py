"""A run small enough for a test: the shipped Mask R-CNN config with a tiny HCGNet on generated pictures."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mmhcg.data import make_shapes

REPO = Path(__file__).parents[1]
CONFIGS = REPO / 'configs'
CLASSES = ('ellipse', 'rectangle', 'triangle')

CONFIG = """
_base_ = {base!r}
model = dict(
    backbone=dict(arch=dict(_delete_=True, blocks=(1, 1, 1, 1), growth_rates=(8, 8, 8, 8))),
    neck=dict(in_channels=[72, 44, 30, 23], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16, num_classes=3),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=8, num_classes=3),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=50, max_per_img=20), rcnn=dict(sampler=dict(num=16))),
    # A detector after a dozen iterations is sure of nothing: without a threshold there are boxes to score.
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=200), rcnn=dict(score_thr=0.0)),
)
metainfo = dict(classes={classes!r})
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=train_pipeline), **loader)
val_dataloader = dict(dataset=dict(metainfo=metainfo, pipeline=test_pipeline), **loader)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2)
default_hooks = dict(logger=dict(interval=1))
"""

HEIR = """
_base_ = {base!r}
custom_hooks = {hooks!r}
"""


def write_config(folder: Path, base: str = 'mask_rcnn_hcgnet_b_fpn_1x_coco.py') -> Path:
    """The tiny config as `folder/tiny.py`."""
    path = folder / 'tiny.py'
    path.write_text(CONFIG.format(base=str(CONFIGS / base), classes=CLASSES))
    return path


def write_data(folder: Path) -> Path:
    """Eight pictures of 64x64 to train on and four held out, in COCO's layout."""
    make_shapes(folder / 'shapes', images=8, seed=0, val_images=4, size=64)
    return folder / 'shapes'


def load_script(path: Path) -> ModuleType:
    """A script as a module, to call its functions."""
    spec = importlib.util.spec_from_file_location(f'{path.parent.name}_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_tool(name: str) -> ModuleType:
    """`tools/<name>.py` as a module, to call its `main(argv)`."""
    return load_script(REPO / 'tools' / f'{name}.py')


def read_scalars(work_dir: Path) -> list[dict]:
    """What the newest run in this folder logged for plotting, a dict for each line."""
    newest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in newest.read_text().splitlines()]


def train(
    folder: Path, work_dir: str, *options: str, config: str = 'tiny.py', faults: Sequence[dict] = ()
) -> int:
    """The exit code of tools/train.py, called in this process; `faults` are hooks."""
    if faults:
        (folder / 'faulty.py').write_text(HEIR.format(base=config, hooks=faults))
        config = 'faulty.py'
    argv = [folder / config, '--data-root', folder / 'shapes', '--work-dir', folder / work_dir, *options]
    argv[1:1] = ['--no-pretrained'] if '--resume' in options else ['--no-pretrained', '--seed', '3']
    try:
        load_tool('train').main([str(arg) for arg in argv])
    except SystemExit as stop:
        return stop.code
    return 0


def steps(work_dir: Path) -> list[int]:
    """The iterations that the newest run logged, from 1 on."""
    return [line['step'] for line in read_scalars(work_dir) if 'loss' in line]


def newest_log(work_dir: Path) -> str:
    return max(work_dir.glob('*/*.log')).read_text()
