"""The network against the paper's numbers and against `oracle.py`, in float64."""

import re

import pytest
import torch
from oracle import Oracle, random_state
from torch.utils.flop_counter import FlopCounterMode

from mmhcg.network import Trunk, get_variant
from mmhcg.weights import rename_backbone

SIZES = [(33, 57), (112, 137), (224, 224)]


def trunk_of(state, arch, dtype=torch.float64, **kwargs):
    trunk = Trunk(arch, **kwargs).to(dtype)
    trunk.load_state_dict(rename_backbone(state))
    return trunk


def image_of(batch, size, dtype=torch.float64, seed=0):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-300)).item()


# FACTS of the paper's code: parameters with classifier, multiply-adds in G at 224 x 224 (CIFAR: 32 x 32).
@pytest.mark.parametrize(
    ('arch', 'classes', 'parameters', 'multiply_adds'),
    [
        ('a1', 10, 1_065_301, 0.154),
        ('a2', 10, 3_069_149, 0.489),
        ('a3', 10, 11_239_897, 1.956),
        ('a1', 100, 1_102_651, None),
        ('a2', 100, 3_133_679, None),
        ('a3', 100, 11_363_647, None),
        ('b', 1000, 12_845_501, 2.003),
        ('c', 1000, 42_153_208, 6.972),
    ],
)
def test_sizes_are_the_published_ones(arch, classes, parameters, multiply_adds):
    trunk = Trunk(arch)
    channels = trunk.out_channels[-1]
    assert sum(p.numel() for p in trunk.parameters()) + (channels + 1) * classes == parameters
    if multiply_adds is not None:
        # Published counts are those of the plain formulation, which the oracle runs operator by operator.
        side = 32 if arch.startswith('a') else 224
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            Oracle(random_state(arch, dtype=torch.float32), arch)(torch.zeros(1, 3, side, side))
        count = counter.get_total_flops() / 2 + channels * classes
        assert round(count / 1e9, 3) == multiply_adds


@pytest.mark.parametrize(
    ('arch', 'parameters', 'entries'), [('b', 11_600_501, 1623), ('c', 39_724_208, 2673)]
)
def test_trunk_has_the_entries_of_the_authors_files(arch, parameters, entries):
    trunk = Trunk(arch)
    assert sum(p.numel() for p in trunk.parameters()) == parameters
    assert len(trunk.state_dict()) == entries
    shapes = {name: tensor.shape for name, tensor in rename_backbone(random_state(arch)).items()}
    assert shapes == {name: tensor.shape for name, tensor in trunk.state_dict().items()}


@pytest.mark.parametrize('arch', ['a1', 'b', 'c', dict(blocks=(2, 1), growth_rates=(8, 12))])
@pytest.mark.parametrize('size', [(33, 57), (112, 137)])
def test_declared_channels_and_strides(arch, size):
    trunk = Trunk(arch).eval()
    with torch.no_grad():
        features = trunk(torch.zeros(1, 3, *size))
    expected = [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(trunk.out_channels, trunk.out_strides)
    ]
    assert [tuple(feat.shape) for feat in features] == expected
    assert get_variant(arch).stage_channels == trunk.out_channels
    assert all((feat >= 0).all() for feat in features)


def assert_gradients_equal(actual, expected):
    """To 1e-10 of each tensor's largest gradient, but for those that cancel and hold nothing but rounding."""
    assert actual.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        error = (actual[name] - gradient).abs().max()
        assert error <= 1e-10 * max(gradient.abs().max(), 1e-2 * largest), name


# In training mode a gate's BatchNorm over two numbers is close to a step function: the network amplifies one
# rounding of the image to 1e-6 and more, in the oracle as in ours. The whole is therefore compared with four
# images or more, and with two images module by module, below.
@pytest.mark.parametrize(
    ('arch', 'batch', 'training', 'size'),
    [
        *[(arch, batch, False, size) for arch in 'bc' for batch in (1, 2) for size in SIZES],
        *[('b', 8, True, (33, 57)), ('b', 8, True, (65, 96)), ('c', 8, True, (33, 57))],
    ],
)
def test_features_and_gradients_equal_the_oracle(arch, batch, training, size):
    state = random_state(arch)
    trunk = trunk_of(state, arch).train(training)
    leaves = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in state.items()
    }
    image = image_of(batch, size)
    actual_image, expected_image = image.clone().requires_grad_(), image.clone().requires_grad_()
    actual, expected = trunk(actual_image), Oracle(leaves, arch, training)(expected_image)
    for a, e in zip(actual, expected):
        assert relative_error(a, e) < 1e-10

    weights = [image_of(1, feat.shape[-2:], seed=i)[:, :1] for i, feat in enumerate(expected)]
    sum((feat * w).sum() for feat, w in zip(actual, weights)).backward()
    sum((feat * w).sum() for feat, w in zip(expected, weights)).backward()
    wanted = {
        key: leaf.grad for key, leaf in leaves.items() if 'running' not in key and leaf.grad is not None
    }
    wanted = dict(rename_backbone(wanted), image=expected_image.grad)
    assert_gradients_equal(
        dict({name: p.grad for name, p in trunk.named_parameters()}, image=actual_image.grad), wanted
    )


@pytest.mark.parametrize(
    ('arch', 'size'), [*[('b', size) for size in SIZES], ('c', (33, 57)), ('c', (112, 137))]
)
def test_every_module_equals_the_oracle_on_two_training_images(arch, size):
    state = random_state(arch)
    trunk = trunk_of(state, arch).train()
    leaves = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point()) for name, tensor in state.items()
    }
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
        own = {key: leaf for key, leaf in own.items() if 'running' not in key}
        weight = image_of(1, expected.shape[-2:])[:, :1]
        wanted = torch.autograd.grad((expected * weight).sum(), [theirs, *own.values()])
        wanted = dict(rename_backbone(dict(zip(own, wanted[1:]))), input=wanted[0])
        inputs = {key: parameters.get(key, mine) for key in wanted}
        got = torch.autograd.grad((actual * weight).sum(), list(inputs.values()))
        assert_gradients_equal(dict(zip(inputs, got)), wanted)


@pytest.mark.parametrize('arch', ['b', 'c'])
def test_fp32_rounding_is_that_of_the_plain_formulation(arch):
    state = random_state(arch)
    single = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    image = image_of(1, (224, 224))
    with torch.no_grad():
        exact = Oracle(state, arch)(image)
        plain = Oracle(single, arch)(image.float())
        ours = trunk_of(single, arch, torch.float32).eval()(image.float())
    for o, p, e in zip(ours, plain, exact):
        assert relative_error(o.double(), e) <= 2 * relative_error(p.double(), e)


CPU_HALF = pytest.mark.skipif(
    torch.__version__ < (2, 4), reason='no float16 autocast on CPUs before PyTorch 2.4'
)


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=CPU_HALF)])
def test_autocast_runs_and_rounds_like_the_plain_formulation(dtype):
    state = random_state('b')
    single = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }
    image = image_of(2, (112, 137))
    trunk = trunk_of(single, 'b', torch.float32).eval()
    with torch.autocast('cpu', dtype=dtype):
        ours = trunk(image.float())
        with torch.no_grad():
            plain = Oracle(single, 'b')(image.float())
    assert all(feat.dtype == dtype for feat in ours[:1])
    with torch.no_grad():
        exact = Oracle(state, 'b')(image)
    for o, p, e in zip(ours, plain, exact):
        assert relative_error(o.double(), e) <= 2 * relative_error(p.double(), e)
    sum(feat.float().square().mean() for feat in ours).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trunk.parameters())


@pytest.mark.parametrize('in_channels', [1, 4])
def test_in_channels(in_channels):
    image = torch.zeros(1, in_channels, 32, 32)
    assert len(Trunk('b', in_channels=in_channels).eval()(image)) == 4


@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 3)])
def test_out_indices_choose_stages_and_build_no_others(out_indices):
    state = rename_backbone(random_state('b'))
    whole, part = Trunk('b').double().eval(), Trunk('b', out_indices=out_indices).double().eval()
    whole.load_state_dict(state)
    part.load_state_dict({name: state[name] for name in part.state_dict()})
    image = image_of(1, (64, 96))
    with torch.no_grad():
        everything, chosen = whole(image), part(image)
    assert len(chosen) == len(out_indices)
    for index, feat in zip(out_indices, chosen):
        assert torch.equal(feat, everything[index])
    assert len(part.stages) == out_indices[-1] + 1
    assert part.out_channels == tuple(whole.out_channels[i] for i in out_indices)
    assert part.out_strides == tuple(whole.out_strides[i] for i in out_indices)


def bytes_saved(trunk, image):
    """Bytes kept for the backward pass, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in trunk.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = trunk(image)
    return sum(saved.values()), features


def test_checkpointing_saves_memory_and_changes_no_number():
    state, image = random_state('b'), image_of(2, (64, 96))
    results = []
    for with_cp in (False, True):
        trunk = trunk_of(state, 'b', with_cp=with_cp).train()
        saved, features = bytes_saved(trunk, image)
        sum(feat.square().mean() for feat in features).backward()
        gradients = [p.grad for p in trunk.parameters()]
        results.append((saved, features, gradients, list(trunk.buffers())))
    (plain, *wanted), (checkpointed, *got) = results
    assert checkpointed < 0.5 * plain
    for wanted_tensors, got_tensors in zip(wanted, got):  # running statistics too: each batch counts once
        assert all(torch.equal(w, g) for w, g in zip(wanted_tensors, got_tensors))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='d'), 'a1, a2, a3, b, c'),
        (dict(arch=dict(blocks=(1, 2))), 'growth_rates'),
        (dict(arch=dict(blocks=(1, 2), growth_rates=(8,))), 'length'),
        (dict(arch=dict(blocks=(1, 0), growth_rates=(8, 8))), 'positive'),
        (dict(arch=dict(blocks=(1,), growth_rates=(6,))), 'multiples of 4'),
        (dict(arch='b', out_indices=(4,)), 'out_indices'),
        (dict(arch='b', out_indices=(2, 1)), 'out_indices'),
        (dict(arch='b', out_indices=()), 'out_indices'),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Trunk(**kwargs)
