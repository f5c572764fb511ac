"""DropBlock: the published algorithm, its place in the network, and its probability epoch by epoch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from compare import image_of
from torch import nn
from torchvision.ops import drop_block2d

from mmhcg import HCGNet
from mmhcg.network import Trunk
from mmhcg.network.drop_block import DropBlock
from mmhcg.runs import UserError
from mmhcg.runs.drop_block import DropBlockSchedule

RESTARTS = (10, 20, 40, 80, 160, 320, 640)


@pytest.mark.parametrize('block_size', [1, 3, 5])
@pytest.mark.parametrize('size', [(9, 14), (4, 3)])
def test_odd_squares_are_torchvisions(block_size, size):
    feat = torch.rand(4, 16, *size) + 0.5
    torch.manual_seed(0)
    dropped = DropBlock(block_size, 0.2)(feat)
    torch.manual_seed(0)
    expected = drop_block2d(feat, 0.2, block_size)
    assert not torch.equal(expected, feat)
    torch.testing.assert_close(dropped, expected, rtol=1e-6, atol=0)


def test_squares_of_two_lie_inside_the_map_and_keep_its_mean():
    dropped = DropBlock(2, 0.02)(torch.ones(8, 16, 17, 23))
    zero = (dropped == 0).float()
    # Each zero belongs to a square of four of them: the union of such squares is all that is zero.
    whole = -nn.functional.max_pool2d(-zero, 2, stride=1)
    union = nn.functional.max_pool2d(nn.functional.pad(whole, [1] * 4), 2, stride=1)
    assert torch.equal(union, zero)
    assert dropped.mean().item() == pytest.approx(1, rel=1e-5)
    assert dropped.unique().numel() == 2
    assert len(zero.flatten(2).flatten(0, 1).unique(dim=0)) > 64  # of 128 maps, each on its own
    # 50,048 numbers, 2 % of them expected: neighbours are dropped together, so three deviations are 0.004.
    assert zero.mean().item() == pytest.approx(0.02, abs=0.004)


def test_a_map_smaller_than_the_square_is_dropped_whole_or_not():
    dropped = DropBlock(2, 0.5)(torch.ones(4, 64, 1, 3))
    assert {0.0} < {round(value, 3) for value in dropped.unique().tolist()}
    assert DropBlock(2, 0.999)(torch.ones(1, 1, 2, 2)).isfinite().all()
    pairs = {tuple(DropBlock(1, 0.5)(torch.ones(1, 1, 1, 2)).flatten().tolist()) for _ in range(99)}
    assert pairs == {(0, 0), (0, 2), (2, 0), (1, 1)}  # one value alone makes up for the other, too


def test_half_precision_scales_by_a_count_in_float32():
    """Numbers above 256 are rounded in bfloat16, and their count may not be."""
    for _ in range(30):  # rounded counts lead to the same scale more often than not
        feat = DropBlock(2, 0.3)(torch.ones(1, 1, 64, 65, dtype=torch.bfloat16))
        assert feat.dtype == torch.bfloat16
        scale = torch.tensor(feat.numel() / (feat > 0).sum().item())
        assert set(feat.unique().tolist()) == {0.0, scale.bfloat16().item()}


@pytest.mark.parametrize(
    'wrong', [dict(block_size=0), dict(block_size=2.5), dict(block_size=2, probability=1.0)]
)
def test_impossible_options_are_refused(wrong):
    with pytest.raises(ValueError, match='no DropBlock of block_size'):
        DropBlock(**wrong)


def test_it_stands_after_each_transition_and_only_trains():
    plain, dropping = Trunk('a1'), Trunk('a1', drop_block=dict(block_size=2, probability=0.1))
    assert list(dropping.state_dict()) == list(plain.state_dict())
    dropping.load_state_dict(plain.state_dict())
    assert [stage.drop_block is None for stage in dropping.stages] == [True, False, False]
    seen = {}
    for index, stage in enumerate(dropping.stages[1:], 1):
        stage.transition.register_forward_hook(lambda *call, index=index: seen.update({index: call[-1]}))
        stage.drop_block.register_forward_pre_hook(
            lambda module, given, index=index: seen.update({-index: given[0]})
        )
    image = image_of(2, (16, 24), torch.float32)
    first, second = dropping(image), dropping(image)
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    assert all(seen[-index] is seen[index] for index in (1, 2))
    plain.eval(), dropping.load_state_dict(plain.state_dict()), dropping.eval()
    with torch.no_grad():
        assert all(map(torch.equal, plain(image), dropping(image)))


def test_backbone_hands_it_on_and_freezes_it_with_its_stage():
    backbone = HCGNet('a1', out_indices=(2,), drop_block=dict(block_size=2), frozen_stages=2)
    blocks = [module for module in backbone.modules() if isinstance(module, DropBlock)]
    assert [(block.block_size, block.probability) for block in blocks] == [(2, 0.0)] * 2
    assert [block.training for block in blocks] == [False, True]


def test_probability_grows_from_0_to_a_tenth_within_each_restart():
    schedule = DropBlockSchedule(RESTARTS, end=0.1)
    expected = [0.1 * k / (period - 1) for period in RESTARTS for k in range(period)]
    assert len(expected) == 1270
    assert [schedule.probability(epoch) for epoch in range(1270)] == pytest.approx(expected, abs=1e-15)
    assert schedule.probability(2000) == 0.1
    assert DropBlockSchedule([1]).probability(0) == 0.0


def test_the_hook_sets_it_before_each_epoch_and_wants_a_dropblock():
    schedule = DropBlockSchedule((3, 6), end=0.4)
    runner = SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 3, 1), DropBlock(2), nn.ReLU()), epoch=0)
    found = []
    schedule.before_train(runner)
    for runner.epoch in range(9):
        schedule.before_train_epoch(runner)
        found.append(runner.model[1].probability)
    assert found == pytest.approx([0, 0.2, 0.4, 0, 0.08, 0.16, 0.24, 0.32, 0.4])
    runner.model = nn.Sequential(nn.ReLU())
    with pytest.raises(UserError, match='no DropBlock in the model'):
        schedule.before_train(runner)
