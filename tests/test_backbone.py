"""The registered backbone: MMDetection's conventions, each seen by its effect."""

import json
import os
import subprocess
import sys
from math import gcd

import pytest
import torch
import torch.multiprocessing as mp
from compare import in_our_names, relative_error
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, DefaultScope
from oracle import Oracle, random_state
from tiny_run import REPO
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

import mmhcg
from mmhcg import HCGNet
from mmhcg.analysis.operators import saved_bytes
from mmhcg.network import Trunk
from mmhcg.stack.checkpoints import CheckpointError

GATE_NORMS = ('update.norm', 'forget.norm')
SMALL = dict(blocks=(1, 2, 1, 1), growth_rates=(8, 8, 12, 12))


class OwnGroupNorm(nn.GroupNorm):
    """As users have them."""


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
def test_network_and_its_benchmark_import_nothing_of_openmmlab():
    code = (
        'import importlib.util, sys\n'
        'class Wall:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        "        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmdet'):\n"
        "            raise ModuleNotFoundError(f'the wall stops {name}', name=name)\n"
        'sys.meta_path.insert(0, Wall())\n'
        'importlib.util.find_spec = lambda name: None\n'
        'import mmhcg.network\n'
        f'sys.path.append({str(REPO / "tools")!r})\n'
        'import benchmark\n'
        "assert not [m for m in sys.modules if m.startswith(('mmengine', 'mmcv', 'mmdet'))]\n"
        'try:\n'
        '    from mmhcg import HCGNet\n'
        'except ImportError as error:\n'
        "    assert 'mmhcg doctor' in str(error), error\n"
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
        (dict(type='BN2d'), (nn.BatchNorm2d, nn.BatchNorm1d)),
        (dict(type=nn.BatchNorm2d), (nn.BatchNorm2d, nn.BatchNorm1d)),
        (dict(type=nn.SyncBatchNorm), nn.SyncBatchNorm),
        (dict(type=nn.GroupNorm, num_groups=32), nn.GroupNorm),
        (dict(type=OwnGroupNorm, num_groups=32), OwnGroupNorm),
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
    on_contexts = {name: norm for name, norm in model.named_modules() if name.endswith(GATE_NORMS)}
    assert len(on_contexts) == 2 * (smgs + transitions)
    if 'num_groups' in norm_cfg:
        assert {norm.num_groups for norm in on_contexts.values()} == {1}
        on_maps = [norm for norm in norms if norm not in on_contexts.values()]
        assert all(norm.num_groups == gcd(32, norm.num_channels) for norm in on_maps)
    elif isinstance(kinds, tuple):
        assert {type(norm) for norm in on_contexts.values()} == {nn.BatchNorm1d}


def test_group_norm_trains_on_one_image_and_its_gates_depend_on_it():
    model = HCGNet(SMALL, norm_cfg=dict(type='GN', num_groups=32)).train()
    features = model(image(batch=1))
    loss_of(features).backward()
    gates = [p.grad for name, p in model.named_parameters() if 'update.squeeze.weight' in name]
    assert all(gradient.abs().max() > 0 for gradient in gates)  # groups of one number would give zeros


@pytest.mark.parametrize(
    ('with_cp', 'norm_eval', 'part', 'convolutions', 'gates'),
    [
        (False, False, 'block.0', 1, 2),  # on norms that learn, gates keep too much
        (False, True, 'block.0', 1, 1),
        (True, False, 'block.0', 2, 2),
        (True, True, 'block.0', 2, 2),
        (True, True, 'transition', 2, 1),  # whose output is kept, small as it is beside the input
    ],
)
def test_with_cp_runs_convolutions_once_more(with_cp, norm_eval, part, convolutions, gates):
    calls = []
    model = HCGNet(SMALL, with_cp=with_cp, norm_eval=norm_eval).train()
    module = model.stages[1].get_submodule(part)
    for layer in (module.conv2, module.update.squeeze):
        layer.register_forward_pre_hook(lambda layer, args: calls.append(layer))
    loss_of(model(image())).backward()
    assert (calls.count(module.conv2), calls.count(module.update.squeeze)) == (convolutions, gates)


# A plain formulation keeps 1.13 GB, ResNet-50 0.92 GB.
@pytest.mark.parametrize(('with_cp', 'limit'), [(False, 0.35e9), (True, 0.15e9)])
def test_coco_recipe_keeps_little_for_the_backward_pass(with_cp, limit):
    model = HCGNet('b', frozen_stages=1, norm_eval=True, with_cp=with_cp).train()
    saved, features = saved_bytes(lambda: model(torch.zeros(1, 3, 800, 1216)), model.parameters())
    assert sum(feat.nbytes for feat in features[1:3]) < saved <= limit


@pytest.mark.parametrize('frozen_stages', [-2, 5, '1', None, 1.0])
def test_frozen_stages_that_are_not_there_are_refused(frozen_stages):
    with pytest.raises(ValueError, match=rf'frozen_stages must be .* -1\.\.4, not {frozen_stages!r}'):
        HCGNet(SMALL, frozen_stages=frozen_stages)


def test_frozen_stages_are_among_those_built():
    assert HCGNet(SMALL, out_indices=(0,), frozen_stages=1).frozen_stages == 1
    with pytest.raises(ValueError, match=r'-1\.\.1, not 3'):
        HCGNet(SMALL, out_indices=(0,), frozen_stages=3)


@pytest.mark.parametrize(('arch', 'stages'), [('a1', (0, 1, 2)), (SMALL, (0, 1, 2, 3))])
def test_all_stages_are_returned_unless_some_are_chosen(arch, stages):
    assert HCGNet(arch).out_indices == stages


@pytest.mark.parametrize('in_channels', [1, 4])
def test_images_of_other_channels_have_the_features_of_the_oracle(in_channels):
    state = random_state('b', in_channels=in_channels)
    model = HCGNet('b', in_channels=in_channels).double().eval()
    model.load_state_dict(in_our_names(state, 'b'))
    image = torch.randn(1, in_channels, 33, 57, dtype=torch.float64)
    with torch.no_grad():
        errors = list(map(relative_error, model(image), Oracle(state, 'b')(image)))
    assert len(errors) == 4 and max(errors) <= 1e-10


def test_sync_batch_norm_needs_one_image_per_gpu_where_there_are_several(monkeypatch):
    monkeypatch.setattr('mmhcg.backbone.get_world_size', lambda: 2)
    monkeypatch.setattr(Trunk, 'forward', lambda self, image: 'runs')  # for the norm would ask the others
    assert HCGNet(SMALL, norm_cfg=dict(type='SyncBN'))(image(batch=1)) == 'runs'
    with pytest.raises(ValueError, match='norm_eval=True'):
        HCGNet(SMALL)(image(batch=1))


@pytest.mark.parametrize(
    'norm_cfg',
    [
        *({'type': kind} for kind in ('IN', 'LN', 'BN1d', 'BN3d', 'NoNorm', nn.LayerNorm, 5, None)),
        *(None, 'BN', {}, dict(type='GN'), dict(type='GN', num_groups=0)),
        dict(type='BN', num_groups=8),
        *(dict(type=nn.GroupNorm, num_groups=n) for n in (-1, '8', 8.0)),
    ],
    ids=str,
)
def test_norms_that_the_network_cannot_use_are_refused(norm_cfg):
    with pytest.raises(ValueError, match=r'norm_cfg must be a dict of type BN, SyncBN or GN, not ') as error:
        HCGNet(SMALL, norm_cfg=norm_cfg)
    assert repr(norm_cfg) in str(error.value)


@pytest.mark.parametrize(
    ('init_cfg', 'error', 'message'),
    [
        ('w.pth', TypeError, "must be None, a dict or a list of dicts, not 'w.pth'"),
        ([None], TypeError, r'not \[None\]'),
        (dict(type='Pretrained'), ValueError, 'must name its file'),
        ([dict(type=PretrainedInit, checkpoint=None)], ValueError, 'must name its file'),
        ([dict(layer='Conv2d')], ValueError, 'has no type'),
    ],
)
def test_initialisations_that_say_too_little_are_refused(init_cfg, error, message):
    with pytest.raises(error, match=f'init_cfg.*{message}'):
        HCGNet(SMALL, init_cfg=init_cfg)


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_every_pretrained_file_of_a_list_must_fit(tmp_path, kind):
    model = HCGNet(SMALL)
    torch.save(dict(list(model.state_dict().items())[:-9]), tmp_path / 'part.pth')
    inits = [dict(type='Kaiming', layer='Conv2d'), dict(type=kind, checkpoint=str(tmp_path / 'part.pth'))]
    for init_cfg in (inits, inits[1]):
        with pytest.raises(CheckpointError, match=r'part\.pth: does not fit HCGNet'):
            HCGNet(SMALL, init_cfg=init_cfg).init_weights()


def _train_a_step_of_each(rank, path):
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.distributed.init_process_group('gloo', init_method=f'file://{path}', rank=rank, world_size=2)
    seen = []
    for out_indices in [(0,), (1,), (2,), (3,), (0, 1), (1, 3), (0, 1, 2, 3)]:
        for frozen_stages in range(-1, out_indices[-1] + 2):
            backbone = HCGNet(SMALL, out_indices=out_indices, frozen_stages=frozen_stages)
            model = DistributedDataParallel(nn.Sequential(backbone, Head(backbone.out_channels)))
            for _ in range(2):  # DDP complains in the second iteration about what the first left unused
                loss = model(image() + rank)
                loss.backward()
            used = [p.grad is not None for p in backbone.parameters() if p.requires_grad]
            where = f'{out_indices}, {frozen_stages}'
            seen.append((where, all(used), bool(used), frozen_stages <= out_indices[-1]))
    path.with_suffix(f'.{rank}').write_text(json.dumps(seen))
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
        seen = json.loads((tmp_path / f'rendezvous.{rank}').read_text())
        assert len(seen) == 3 + 4 + 5 + 6 + 4 + 6 + 6  # by the last of the outputs: -1 to one after it
        for where, all_used, some_used, learns in seen:
            assert all_used and some_used == learns, where
