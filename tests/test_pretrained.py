"""What a start from random weights says and does about small and incomplete batches, and leaves behind."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from tiny_run import CONFIGS

from mmhcg import HCGNet
from mmhcg.runs.batches import FullBatchSampler
from mmhcg.runs.config import class_name
from mmhcg.runs.errors import UserError
from mmhcg.runs.preflight import FULL_BATCHES_NOTE, SMALL_BATCH_NOTE, settle_batches
from mmhcg.runs.pretrained import start_from_scratch, was_started_from_scratch


class Shapes(list):
    """A data set of which nothing but the images' shapes is known."""

    get_data_info = list.__getitem__


@pytest.fixture
def cfg() -> Config:
    return Config.fromfile(CONFIGS / 'mask_rcnn_hcgnet_b_fpn_1x_coco.py')


@pytest.mark.parametrize('norm', ['BN', 'SyncBN', 'GN'])
@pytest.mark.parametrize('norm_eval', [True, False])
@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
def test_fewer_than_four_images_are_told_to_be_too_few(cfg, norm, norm_eval, launcher):
    learns = not norm_eval and norm != 'GN' and (norm == 'BN' or launcher == 'none')
    cfg.model.backbone.update(norm_eval=norm_eval, norm_cfg=dict(type=norm, num_groups=2), frozen_stages=-1)
    if norm != 'GN':
        del cfg.model.backbone.norm_cfg['num_groups']
    cfg.launcher = launcher
    for size, told in {2: learns, 3: learns, 4: False}.items():
        cfg.train_dataloader.batch_size = size
        assert settle_batches(cfg) == [FULL_BATCHES_NOTE] * learns + [SMALL_BATCH_NOTE] * told
        assert class_name(cfg.train_dataloader.batch_sampler).startswith('Full') == learns
    cfg.train_dataloader.pop('batch_size')  # PyTorch's is 1
    with pytest.raises(UserError, match='batch_size=1') if learns else nullcontext():
        assert settle_batches(cfg) == []


def test_without_a_batch_sampler_the_loader_drops_the_incomplete_batch(cfg):
    cfg.train_dataloader.batch_sampler = None
    start_from_scratch(cfg, HCGNet)
    settle_batches(cfg)
    assert cfg.train_dataloader.drop_last is True


@pytest.mark.parametrize('drop_last', [False, True])
@pytest.mark.parametrize('count', [12, 13])
def test_full_batches_alone_are_kept_and_counted(count, drop_last):
    shapes = [dict(height=1 + number % 2, width=2 - number % 2) for number in range(count)]
    sampler = DefaultSampler(Shapes(shapes), shuffle=False)
    batches = FullBatchSampler(sampler, 4, drop_last)
    found = list(batches)
    assert [len(batch) for batch in found] == [4] * len(batches) == [4, 4, 4]
    assert len({number for batch in found for number in batch}) == 12


@pytest.mark.parametrize(
    ('entries', 'told'),
    [
        (dict(no_pretrained=True), True),
        (dict(no_pretrained=False), False),
        (dict(teacher_no_pretrained=True), False),
        (dict(notes='as with no_pretrained = True'), False),
    ],
    ids=str,
)
def test_a_checkpoint_tells_by_an_entry_of_its_config_alone(entries, told):
    cfg = Config(dict(a_first=1, **entries, z_last=2))
    assert was_started_from_scratch(dict(meta=dict(cfg=cfg.pretty_text))) is told
