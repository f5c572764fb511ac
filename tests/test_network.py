"""The network's sizes against the paper's, its rounding against the plain formulation's, and its options."""

import pytest
import torch
from compare import image_of, in_our_names, relative_error, trunk_of
from oracle import Oracle, random_state
from torch.utils.flop_counter import FlopCounterMode

from mmhcg.analysis.operators import saved_bytes
from mmhcg.network import Trunk, get_variant


# Parameters with classifier, and multiply-adds in G at 224 x 224 (CIFAR: 32 x 32), of the authors' code. The
# paper (Yang et al., AAAI 2020, arXiv 1908.09699) rounds them in its tables on CIFAR (1.1, 3.1 and 11.4 M,
# with 100 classes) and on ImageNet (12.9 M and 2.0 G, 42.2 M and 7.0 G).
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
        state = {name: tensor.to('meta') for name, tensor in random_state(arch).items()}
        image = torch.zeros(1, 3, side, side, device='meta', dtype=torch.float64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            Oracle(state, arch)(image)
        count = counter.get_total_flops() / 2 + channels * classes
        assert round(count / 1e9, 3) == multiply_adds


def test_a_trunk_of_nothing_in_particular_is_b():
    with torch.device('meta'):
        assert Trunk().out_channels == Trunk('b').out_channels


def test_convolutions_start_as_he_et_al_say():
    """Equation 10 of He et al., 2015: normal, of variance 2 / inputs."""
    normalised = [
        conv.weight.flatten() * (conv.weight[0].numel() / 2) ** 0.5
        for conv in Trunk('b').modules()
        if isinstance(conv, torch.nn.Conv2d)
    ]
    for weights in normalised:
        count = len(weights)
        assert abs(weights.std().item() - 1) < 5 / (2 * count) ** 0.5
        assert abs(weights.mean().item()) < 5 / count**0.5


@pytest.mark.parametrize(
    ('arch', 'parameters', 'entries'), [('b', 11_600_501, 1623), ('c', 39_724_208, 2673)]
)
def test_trunk_has_the_entries_of_the_authors_files(arch, parameters, entries):
    trunk = Trunk(arch)
    assert sum(p.numel() for p in trunk.parameters()) == parameters
    assert len(trunk.state_dict()) == entries
    shapes = {name: tensor.shape for name, tensor in in_our_names(random_state(arch), arch).items()}
    assert shapes == {name: tensor.shape for name, tensor in trunk.state_dict().items()}


SMALL = dict(blocks=(2, 1), growth_rates=(8, 12))


@pytest.mark.parametrize('arch', ['a1', 'b', 'c', SMALL, dict(SMALL, stem='cifar')], ids=str)
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


@pytest.mark.parametrize('arch', ['b', pytest.param('c', marks=pytest.mark.slow)])
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


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=CPU_HALF)])
@pytest.mark.parametrize('scale', [1, 1000])
def test_a_module_on_a_large_map_rounds_like_the_plain_formulation(dtype, scale):
    blocks, growth_rates = (1,), (32,)
    state = random_state((blocks, growth_rates))
    single = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    trunk = trunk_of(state, dict(blocks=blocks, growth_rates=growth_rates), torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    feat = scale * torch.randn(1, 64, 200, 336, generator=generator, dtype=torch.float64)
    options = ('hybridblock1.0', feat.float(), 128, 32, 4, 1)
    with torch.no_grad():
        exact = Oracle(state, (blocks, growth_rates)).smg('hybridblock1.0', feat, *options[2:])
        with torch.autocast('cpu', dtype=dtype):
            plain = Oracle(single, (blocks, growth_rates)).smg(*options)
            ours = trunk.stages[0].block[0](feat.float())
    assert ours.dtype == dtype
    assert relative_error(ours.double(), exact) <= 2 * relative_error(plain.double(), exact)


@pytest.mark.parametrize('out_indices', [(0,), (3,), (1, 3)])
def test_out_indices_choose_stages_and_build_no_others(out_indices):
    state = in_our_names(random_state('b'), 'b')
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


def test_checkpointing_saves_memory_and_changes_no_number():
    state, image = random_state('b'), image_of(2, (64, 96))
    results = []
    for options in ({}, dict(with_cp=True)):
        trunk = trunk_of(state, 'b', **options).train()
        saved, features = saved_bytes(lambda trunk=trunk: trunk(image), trunk.parameters())
        sum(feat.square().mean() for feat in features).backward()
        gradients = [p.grad for p in trunk.parameters()]
        results.append((saved, features, gradients, list(trunk.buffers())))
    (plain, *wanted), (checkpointed, *got) = results
    assert checkpointed < 0.6 * plain
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
        (dict(arch='b', out_indices=(4,)), r'out_indices must be .* whole numbers in 0\.\.3, not \(4,\)'),
        (dict(arch='b', out_indices=(2, 1)), 'out_indices'),
        (dict(arch='b', out_indices=()), 'out_indices'),
        (dict(arch='b', out_indices=(1, 1)), 'out_indices'),
        (dict(arch='b', out_indices=(0.0,)), 'out_indices'),
        (dict(arch='b', out_indices=0), 'out_indices'),
        (dict(arch='B'), 'a1, a2, a3, b, c'),
        (dict(arch=dict(blocks=(1.5,), growth_rates=(8,))), 'positive whole'),
        (dict(arch=dict(blocks=(1,), growth_rates=(8,), stem='x')), "'imagenet' or 'cifar'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Trunk(**kwargs)
