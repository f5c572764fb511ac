"""The network against `oracle.py` in float64: features and every gradient, to 1e-10."""

import re

import pytest
import torch
from compare import assert_gradients_equal, image_of, in_our_names, relative_error, trunk_of
from oracle import Oracle, random_state

from mmhcg.network import get_variant

slow = pytest.mark.slow
SIZES = [(33, 57), (112, 137), (224, 224)]


def leaves_of(state):
    """A copy whose parameters get gradients."""
    return {
        name: tensor.clone().requires_grad_(tensor.is_floating_point() and 'running' not in name)
        for name, tensor in state.items()
    }


# In training mode a gate's BatchNorm over two numbers is close to a step function: the network amplifies one
# rounding of the image to 1e-6 and more, in the oracle as in ours. The whole is therefore compared with eight
# images, and with two images module by module, below.
@pytest.mark.parametrize(
    ('arch', 'batch', 'training', 'size'),
    [
        *[('b', batch, False, size) for batch in (1, 2) for size in SIZES[:2]],
        *[('b', 8, True, (33, 57)), ('b', 8, True, (65, 96))],
        *[pytest.param('b', batch, False, SIZES[2], marks=slow) for batch in (1, 2)],
        *[pytest.param('c', batch, False, size, marks=slow) for batch in (1, 2) for size in SIZES],
        pytest.param('c', 8, True, (33, 57), marks=slow),
    ],
)
def test_features_and_gradients_equal_the_oracle(arch, batch, training, size):
    state = random_state(arch)
    trunk = trunk_of(state, arch).train(training)
    leaves = leaves_of(state)
    image = image_of(batch, size)
    actual_image, expected_image = image.clone().requires_grad_(), image.clone().requires_grad_()
    actual, expected = trunk(actual_image), Oracle(leaves, arch, training)(expected_image)
    for a, e in zip(actual, expected):
        assert relative_error(a, e) < 1e-10

    weights = [image_of(1, feat.shape[-2:], seed=i)[:, :1] for i, feat in enumerate(expected)]
    sum((feat * w).sum() for feat, w in zip(actual, weights)).backward()
    sum((feat * w).sum() for feat, w in zip(expected, weights)).backward()
    wanted = {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
    wanted = dict(in_our_names(wanted, arch), image=expected_image.grad)
    assert_gradients_equal(
        dict({name: p.grad for name, p in trunk.named_parameters()}, image=actual_image.grad), wanted
    )


@pytest.mark.parametrize('arch', ['b', pytest.param('c', marks=slow)])
@pytest.mark.parametrize('size', [*SIZES[:2], pytest.param(SIZES[2], marks=slow)])
def test_every_module_equals_the_oracle_on_two_training_images(arch, size):
    state = random_state(arch)
    trunk = trunk_of(state, arch).train()
    leaves = leaves_of(state)
    parameters = dict(trunk.named_parameters())
    oracle, calls = Oracle(leaves, arch, training=True), []
    plain_smg = oracle.smg

    def recording_smg(name, feat, *args):
        calls.append((name, feat, args))
        return plain_smg(name, feat, *args)

    oracle.smg = recording_smg
    with torch.no_grad():
        oracle(image_of(2, size))
    assert len(calls) == sum(get_variant(arch).blocks) + 3
    for name, feat, args in calls:
        mine, theirs = feat.clone().requires_grad_(), feat.clone().requires_grad_()
        kind, number = re.match(r'([a-z]+)(\d)', name).groups()
        if kind == 'transition':
            before, stage = trunk.stages[int(number) - 2], trunk.stages[int(number) - 1]
            actual = stage.transition(torch.relu(before.norm(mine)))
        else:
            actual = trunk.stages[int(number) - 1].block[int(name.split('.')[1])](mine)
        expected = plain_smg(name, theirs, *args)
        assert relative_error(actual, expected) < 1e-10, name
        own = {key: leaf for key, leaf in leaves.items() if key.startswith(f'{name}.') and leaf.requires_grad}
        weight = image_of(1, expected.shape[-2:])[:, :1]
        wanted = torch.autograd.grad((expected * weight).sum(), [theirs, *own.values()])
        wanted = dict(in_our_names(dict(zip(own, wanted[1:])), arch), input=wanted[0])
        inputs = {key: parameters.get(key, mine) for key in wanted}
        got = torch.autograd.grad((actual * weight).sum(), list(inputs.values()))
        assert_gradients_equal(dict(zip(inputs, got)), wanted)
