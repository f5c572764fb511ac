"""The network made for inference alone: the same numbers from fewer operators."""

from contextlib import nullcontext

import pytest
import torch
from compare import image_of, relative_error, trunk_of
from oracle import random_state
from torch import nn

from mmhcg import HCGNet
from mmhcg.analysis.operators import OperatorCounter
from mmhcg.network import Trunk, deploy


def odd_norms(state):
    """The state with a third of all norms' scales turned negative, and some zero or tiny."""
    generator = torch.Generator().manual_seed(1)
    state = {name: tensor.clone() for name, tensor in state.items()}
    for name, tensor in state.items():
        if f'{name.rpartition(".")[0]}.running_var' in state and name.endswith('.weight'):
            tensor[torch.rand(tensor.shape, generator=generator) < 0.3] *= -1
            tensor[0], tensor[1], tensor[2] = 0, 1e-12, -1e-9
    return state


def far_norms(state):
    """The state with a third of all norms 0 so far away, 2e4 and more, that no map comes there."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    for name in [name for name in state if name.endswith('.running_var')]:
        prefix = name.removesuffix('running_var')
        for i, far in enumerate((2e4, -4e4, 1e5, -1e5, 5e5, -5e5, 3e6, -1e7)):
            state[f'{prefix}weight'][i::24] = state[f'{prefix}bias'][i::24] / far
    return state


def outputs(model, image, dtype=None):
    with torch.no_grad(), torch.autocast('cpu', dtype) if dtype else nullcontext():
        return model(image)


@pytest.mark.parametrize('arch', ['b', pytest.param('c', marks=pytest.mark.slow)])
@pytest.mark.parametrize('size', [(33, 57), (112, 137)])
@pytest.mark.parametrize('change', [lambda state: state, odd_norms], ids=['usual', 'odd'])
def test_features_are_those_of_the_network(arch, size, change):
    trunk = trunk_of(change(random_state(arch)), arch).eval()
    image = image_of(2, size)
    for got, wanted in zip(outputs(deploy(trunk), image), outputs(trunk, image)):
        assert relative_error(got, wanted) < 1e-9  # a norm that is all but constant counts as constant
    trunk, image = trunk.float(), image.float()
    for got, wanted in zip(outputs(deploy(trunk), image), outputs(trunk, image)):
        assert relative_error(got, wanted) < 1e-5


@pytest.mark.parametrize('is_converted', [True, False], ids=['converted', 'autocast'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_rounds_as_the_network_does(dtype, is_converted):
    if dtype == torch.float16 and torch.__version__ < '2.3':
        pytest.skip('PyTorch before 2.3 has no float16 on CPUs')
    arch = dict(blocks=(1, 2), growth_rates=(24, 32))
    state, image = far_norms(random_state(tuple(arch.values()))), image_of(1, (33, 57))
    exact = outputs(trunk_of(state, arch).eval(), image)
    precision, autocast = (dtype, None) if is_converted else (torch.float32, dtype)
    trunk, image = trunk_of(state, arch).to(precision).eval(), image.to(precision)
    ours, plain = (outputs(model, image, autocast) for model in (deploy(trunk), trunk))
    for o, p, e in zip(ours, plain, exact):
        assert relative_error(o.double(), e) <= 2 * relative_error(p.double(), e)


def test_operators_and_bytes_stay_within_the_budget():
    # The plain formulation: 1577 operators and 6.8 GB. ResNet-50: 172 and 6.4 GB.
    model = deploy(Trunk('b'))
    with torch.no_grad(), OperatorCounter() as counter:
        model(torch.zeros(1, 3, 800, 1216))
    assert 100 < counter.calls <= 900
    assert 2e9 < counter.moved <= 4.0e9


def test_channels_last_gives_the_same():
    model = deploy(trunk_of(random_state('b'), 'b').eval())
    image = image_of(2, (112, 137))
    wanted = outputs(model, image)
    features = outputs(model, image.to(memory_format=torch.channels_last))
    for got, expected in zip(features, wanted):
        assert got.is_contiguous(memory_format=torch.channels_last)
        assert relative_error(got, expected) < 1e-12


def test_a_detector_is_copied_and_its_backbone_replaced():
    backbone = HCGNet(dict(blocks=(1, 2, 1, 1), growth_rates=(8, 8, 12, 12)), out_indices=(1, 3))
    detector = nn.ModuleDict(dict(backbone=backbone, head=nn.Conv2d(3, 3, 1)))
    deployed = deploy(detector)
    image = image_of(1, (64, 96), torch.float32)
    backbone.eval()
    assert type(deployed.backbone) is HCGNet
    assert not any(p.requires_grad for p in deployed.parameters())
    assert all(p.requires_grad for p in detector.parameters())
    for got, wanted in zip(outputs(deployed.backbone, image), outputs(backbone, image)):
        assert relative_error(got, wanted) < 1e-5


def test_training_mode_changes_nothing():
    model, image = (
        deploy(Trunk(dict(blocks=(1, 1), growth_rates=(8, 12)))),
        image_of(2, (33, 57), torch.float32),
    )
    wanted, state = outputs(model, image), {key: value.clone() for key, value in model.state_dict().items()}
    assert all(map(torch.equal, outputs(model.train(), image), wanted))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_cannot_be_deployed_is_named():
    with pytest.raises(ValueError, match='Conv2d has no HCGNet in it that is not deployed'):
        deploy(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match='not deployed yet'):
        deploy(deploy(Trunk(dict(blocks=(1,), growth_rates=(8,)))))
    with pytest.raises(ValueError, match='not GroupNorm'):
        deploy(HCGNet('b', norm_cfg=dict(type='GN', num_groups=32)))
