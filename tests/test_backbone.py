"""The registered backbone: MMDetection's conventions, each seen by its effect."""

import json
import os
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

import mmhcg
from mmhcg import HCGNet
from mmhcg.analysis.operators import saved_bytes

SMALL = dict(blocks=(1, 2, 1, 1), growth_rates=(8, 8, 12, 12))


def image(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def loss_of(features):
    return sum(feat.square().mean() for feat in features)


@pytest.mark.slow
def test_type_resolves_without_an_import_of_ours():
    code = (
        'from mmengine.registry import MODELS\n'
        f"model = MODELS.build(dict(type='mmhcg.HCGNet', arch={SMALL}))\n"
        "assert type(model).__module__ == 'mmhcg.backbone', type(model)\n"
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_type_resolves_in_the_scope_of_every_library(scope):
    with DefaultScope.overwrite_default_scope(scope):
        for name in ('HCGNet', 'mmhcg.HCGNet'):
            assert isinstance(MODELS.build(dict(type=name, arch=SMALL)), HCGNet)


def test_both_registries_hold_the_class_that_the_package_exports():
    for name in ('HCGNet', 'mmhcg.HCGNet'):
        assert MODELS.get(name) is mmhcg.HCGNet


@pytest.mark.slow
def test_network_imports_nothing_of_openmmlab():
    code = (
        'import importlib.util, sys\n'
        'class Wall:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        "        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet'):\n"
        "            raise ModuleNotFoundError(f'the wall stops {name}', name=name)\n"
        'sys.meta_path.insert(0, Wall())\n'
        'importlib.util.find_spec = lambda name: None\n'
        'import mmhcg.network\n'
        "assert not [m for m in sys.modules if m.startswith(('mmengine', 'mmcv', 'mmdet'))]\n"
        'try:\n'
        '    from mmhcg import HCGNet\n'
        'except ImportError as error:\n'
        "    assert 'standalone' in str(error), error\n"
        'else:\n'
        "    raise AssertionError('HCGNet came without MMEngine')\n"
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3, 4])
def test_frozen_stages_stay_as_they_are_and_the_rest_learns(frozen_stages):
    model = HCGNet(SMALL, frozen_stages=frozen_stages)
    assert model.train() is model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = nn.Parameter(torch.ones(()))  # something learns even when the whole backbone is frozen
    optimizer = torch.optim.SGD([p for p in [*model.parameters(), head] if p.requires_grad], lr=0.1)
    (head * loss_of(model(image()))).backward()
    optimizer.step()
    frozen = ('stem.', *(f'stages.{i}.' for i in range(4)))[: frozen_stages + 1]
    cancelling = ('project.bias', 'squeeze.bias')  # no effect inside a softmax, or before a BatchNorm
    for name, tensor in model.state_dict().items():
        if name.startswith(tuple(frozen)):
            assert torch.equal(tensor, before[name]), name
        elif not name.endswith(cancelling):
            assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='SyncBN')])
def test_norm_eval_keeps_running_statistics_and_trains_on_one_image(norm_cfg):
    model = HCGNet(SMALL, norm_cfg=norm_cfg, norm_eval=True).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss_of(model(image(batch=1))).backward()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert all(p.grad is not None for p in model.parameters())

    model = HCGNet(SMALL, norm_cfg=norm_cfg).train()
    model(image())
    assert not any(torch.equal(b, before[n]) for n, b in model.named_buffers() if n.endswith('running_mean'))


@pytest.mark.parametrize('norm_cfg', [dict(type='BN'), dict(type='SyncBN')])
def test_one_training_image_without_norm_eval_says_what_to_set(norm_cfg):
    with pytest.raises(ValueError, match='norm_eval=True'):
        HCGNet(SMALL, norm_cfg=norm_cfg).train()(image(batch=1))
    HCGNet(SMALL, norm_cfg=norm_cfg).eval()(image(batch=1))


@pytest.mark.parametrize(
    ('norm_cfg', 'kinds'),
    [
        (dict(type='BN'), (nn.BatchNorm2d, nn.BatchNorm1d)),
        (dict(type='SyncBN'), nn.SyncBatchNorm),
        (dict(type='GN', num_groups=32), nn.GroupNorm),
    ],
)
@pytest.mark.parametrize('arch', [SMALL, 'b'])
def test_norm_cfg_reaches_every_norm(norm_cfg, kinds, arch):
    model = HCGNet(arch, norm_cfg=dict(norm_cfg, eps=1e-3, requires_grad=False))
    norms = [m for m in model.modules() if isinstance(m, (_BatchNorm, nn.GroupNorm))]
    assert all(isinstance(norm, kinds) for norm in norms)
    # Two norms an SMG before its convolutions and four in its cells and gates; a transition has one less.
    smgs, transitions = sum(len(stage.block) for stage in model.stages), 3
    assert len(norms) == 3 + 6 * smgs + 5 * transitions + 4
    assert all(norm.eps == 1e-3 and not norm.weight.requires_grad for norm in norms)


def test_group_norm_trains_on_one_image_and_its_gates_depend_on_it():
    model = HCGNet(SMALL, norm_cfg=dict(type='GN', num_groups=32)).train()
    features = model(image(batch=1))
    loss_of(features).backward()
    gates = [p.grad for name, p in model.named_parameters() if 'update.squeeze.weight' in name]
    assert all(gradient.abs().max() > 0 for gradient in gates)  # groups of one number would give zeros


@pytest.mark.parametrize(('with_cp', 'runs'), [(False, 1), (True, 2)])
def test_with_cp_runs_convolutions_once_more(with_cp, runs):
    calls = []
    model = HCGNet(SMALL, with_cp=with_cp).train()
    model.stages[1].block[0].conv2.register_forward_pre_hook(lambda *_: calls.append(1))
    loss_of(model(image())).backward()
    assert len(calls) == runs


# A plain formulation keeps 1.13 GB, ResNet-50 0.92 GB.
@pytest.mark.parametrize(('with_cp', 'limit'), [(False, 0.35e9), (True, 0.15e9)])
def test_coco_recipe_keeps_little_for_the_backward_pass(with_cp, limit):
    model = HCGNet('b', frozen_stages=1, norm_eval=True, with_cp=with_cp).train()
    saved, features = saved_bytes(lambda: model(torch.zeros(1, 3, 800, 1216)), model.parameters())
    assert sum(feat.nbytes for feat in features[1:3]) < saved <= limit


@pytest.mark.parametrize('frozen_stages', [-2, 5])
def test_frozen_stages_out_of_range_are_refused(frozen_stages):
    with pytest.raises(ValueError, match=r'frozen_stages must be in -1\.\.4'):
        HCGNet(SMALL, frozen_stages=frozen_stages)


def _train_a_step_of_each(rank, path):
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.distributed.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    unused = {}
    for out_indices in [(0,), (1,), (2,), (3,), (0, 1), (1, 3), (0, 1, 2, 3)]:
        for frozen_stages in range(-1, out_indices[-1] + 2):
            backbone = HCGNet(SMALL, out_indices=out_indices, frozen_stages=frozen_stages)
            model = DistributedDataParallel(nn.Sequential(backbone, Head(backbone.out_channels)))
            for _ in range(2):  # DDP complains in the second iteration about what the first left unused
                loss = model(image() + rank)
                loss.backward()
            names = [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None]
            unused[f'{out_indices}, {frozen_stages}'] = names
    path.with_suffix(f'.{rank}').write_text(json.dumps(unused))
    torch.distributed.destroy_process_group()


class Head(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in channels)

    def forward(self, features):
        return loss_of(conv(feat) for conv, feat in zip(self.convs, features))


@pytest.mark.slow
def test_two_processes_leave_no_parameter_unused(tmp_path):
    mp.spawn(_train_a_step_of_each, args=(tmp_path / 'rendezvous',), nprocs=2)
    for rank in range(2):
        unused = json.loads((tmp_path / f'rendezvous.{rank}').read_text())
        assert len(unused) == 3 + 4 + 5 + 6 + 4 + 6 + 6  # by the last of the outputs: -1 to one after it
        assert not any(unused.values()), unused
