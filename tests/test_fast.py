"""mmhcg.network.fast gives the numbers and the gradients of what it replaces, and keeps less."""

import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmhcg.analysis.operators import saved_bytes
from mmhcg.network import Trunk, gates
from mmhcg.network.fast.onednn import GroupedConv2d, RunChannelsLast
from mmhcg.network.fast.pooled_sums import PooledSums
from mmhcg.network.gates import ForgetGate, UpdateGate, run_gates
from mmhcg.network.smg import dense_module, transition


def gates_of(channels, mode='affine', dtype=torch.float64):
    """Both gates, with norms as after some training, a part of their scales negative."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d if mode != 'GN' else lambda width: nn.GroupNorm(1, width)
    pair = (
        UpdateGate(channels, reduction=2, norm=norm, gate_norm=nn.BatchNorm1d),
        ForgetGate(channels, reduction=2, gate_norm=nn.BatchNorm1d),
    )
    for gate in pair:
        for module in gate.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, mean=3)
        gate.to(dtype).train(mode == 'learning')
    return pair


@pytest.mark.parametrize('shape', [(2, 5, 4, 6), (1, 3, 1, 7)])
def test_gradients_in_closed_form_are_the_numerical_ones(shape):
    channels = shape[1]
    tensors = [torch.randn(*s, dtype=torch.float64) for s in (shape, *[(2, channels)] * 2, (2, 9, channels))]
    tensors.append(torch.randn(channels, dtype=torch.float64))
    inputs = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(PooledSums.apply, inputs)
    assert torch.autograd.gradgradcheck(PooledSums.apply, inputs)


def test_second_derivatives_are_those_of_the_plain_formulation(monkeypatch):
    module = dense_module(16, 8, norm=nn.BatchNorm2d, gate_norm=nn.BatchNorm1d).double().eval()
    feat = torch.randn(2, 16, 5, 7, dtype=torch.float64, requires_grad=True)
    answers = []
    for is_plain in (False, True):
        monkeypatch.setattr(gates, 'is_traced', lambda value=is_plain: value)
        (grad,) = torch.autograd.grad(module(feat).square().sum(), feat, create_graph=True)
        answers.append(
            torch.autograd.grad(grad.square().sum(), [feat, *module.parameters()], allow_unused=True)
        )
    for closed, plain in zip(*answers):
        torch.testing.assert_close(closed, plain, rtol=1e-9, atol=1e-9)


def test_gates_have_the_gradients_that_autograd_finds(monkeypatch):
    update, forget = gates_of(12)
    feat = torch.randn(3, 12, 5, 7, dtype=torch.float64, requires_grad=True)
    inputs = [feat, *update.parameters(), *forget.parameters()]
    answers = []
    for is_compiling in (False, True):  # compilers see the plain formulation
        monkeypatch.setattr(gates, 'is_traced', lambda value=is_compiling: value)
        assert gates.has_closed_form(update) != is_compiling
        outs = run_gates(update, forget, feat)
        answers.append((*outs, *torch.autograd.grad(sum(out.square().sum() for out in outs), inputs)))
    for closed, found in zip(*answers):
        torch.testing.assert_close(closed, found, rtol=1e-9, atol=1e-12)


def test_contexts_are_those_of_the_depthwise_convolutions_that_are_never_run():
    update, forget = gates_of(12)
    feat = torch.randn(2, 12, 5, 7, dtype=torch.float64)
    for pool, context in zip((update.pool3, update.pool5), gates.contexts(update, forget, feat)):
        excited = pool.depthwise(F.relu(pool.norm(feat)))
        weights = pool.project(excited).flatten(2).softmax(2)
        wanted = (excited.flatten(2) * weights).sum(2)
        torch.testing.assert_close(context, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('pool', ['pool3', 'pool5'])
def test_both_norms_must_be_affine_for_the_closed_form(pool):
    update, _ = gates_of(8)
    assert gates.has_closed_form(update)
    getattr(update, pool).norm.train()
    assert not gates.has_closed_form(update)


@pytest.mark.parametrize('options', [dict(track_running_stats=False), dict(affine=False)], ids=str)
def test_norms_without_statistics_or_parameters_are_no_affine_maps(options):
    trunk = Trunk(
        dict(blocks=(1, 1), growth_rates=(8, 12)), norm=lambda width: nn.BatchNorm2d(width, **options)
    ).eval()
    assert all(feat.isfinite().all() for feat in trunk(torch.randn(2, 3, 40, 56)))


@pytest.mark.parametrize('offset', [0, 3])
def test_gradients_round_like_those_of_autograd(offset, monkeypatch):
    single, double = gates_of(32, dtype=torch.float32), gates_of(32, dtype=torch.float64)
    feat = torch.randn(2, 32, 60, 80, dtype=torch.float64) + offset
    errors = []
    for is_plain in (False, True):
        monkeypatch.setattr(gates, 'is_traced', lambda value=is_plain: value)
        answers = []
        for pair, x in ((double, feat), (single, feat.float())):
            inputs = [x.detach().requires_grad_(), *pair[0].parameters(), *pair[1].parameters()]
            outs = run_gates(*pair, inputs[0])
            answers.append(torch.autograd.grad(sum(out.square().sum() for out in outs), inputs))
        pairs = [(exact, got) for exact, got in zip(*answers) if exact.norm() > 1e-9]
        errors.append([((got - exact).norm() / exact.norm()).item() for exact, got in pairs])
    for closed, plain in zip(*errors):
        assert closed <= 4 * plain + 3e-5  # of one draw, so that twice may happen by chance


def test_sums_and_their_gradients_know_no_autocast():
    inputs = [torch.randn(*shape) for shape in ((2, 8, 12, 9), *[(2, 8)] * 2, (2, 9, 8), (8,))]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    answers = []
    for autocast in (False, True):
        outs = PooledSums.apply(*inputs)
        loss = sum(out.square().sum() for out in outs)
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            answers.append(torch.autograd.grad(loss, inputs))
    assert all(map(torch.equal, *answers))


def test_parameters_in_bfloat16_round_like_those_of_autograd(monkeypatch):
    double, half = gates_of(32), gates_of(32, dtype=torch.bfloat16)
    for exact, rounded in zip(double, half):
        exact.load_state_dict(rounded.state_dict())
    feat = (torch.randn(2, 32, 60, 80) + 3).bfloat16()
    answers = []
    for pair, is_plain in ((double, True), (half, True), (half, False)):
        monkeypatch.setattr(gates, 'is_traced', lambda value=is_plain: value)
        x = feat.to(pair[0].squeeze.weight.dtype).requires_grad_()
        outs = run_gates(*pair, x)
        loss = sum(out.square().sum() for out in outs)
        answers.append(torch.autograd.grad(loss, [x, *pair[0].parameters(), *pair[1].parameters()]))
    for exact, plain, closed in zip(*answers):
        if exact.norm() > 1e-9:
            assert (closed - exact).norm() <= 2 * (plain - exact).norm()


@pytest.mark.parametrize('mode', ['learning', 'GN'])
def test_other_norms_are_left_to_autograd(mode):
    update, forget = gates_of(8, mode)
    assert not gates.has_closed_form(update)
    feat = torch.randn(4, 8, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda feat: run_gates(update, forget, feat), feat)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_gates_keep_the_map_in_its_precision_and_the_softmax(dtype):
    update, forget = gates_of(16, dtype=torch.float32)
    feat = torch.randn(1, 16, 40, 60).to(dtype).requires_grad_()
    saved, _ = saved_bytes(
        lambda: run_gates(update, forget, feat), [*update.parameters(), *forget.parameters()]
    )
    softmax, small = 3 * 40 * 60 * 4, 40 * 9 * 16 * 4
    assert feat.nbytes + softmax <= saved <= feat.nbytes + softmax + small


@pytest.mark.parametrize('mode', ['affine', 'learning', 'GN'])
def test_gates_compute_in_the_precision_of_their_parameters(mode):
    pair = gates_of(16, mode, dtype=torch.float32)
    feat = torch.randn(4, 16, 20, 30).bfloat16()
    answers = run_gates(*pair, feat)
    assert all(answer.dtype == torch.float32 for answer in answers)
    assert all(map(torch.equal, answers, run_gates(*pair, feat.float())))


def test_gates_on_learning_norms_are_recomputed():
    """Excited maps of both kernels, four maps in all with their norms', would be kept otherwise."""
    module = dense_module(16, 32, norm=nn.BatchNorm2d, gate_norm=nn.BatchNorm1d)
    maps = torch.randn(4, 16, 40, 60, requires_grad=True)
    saved, out = saved_bytes(lambda: module(maps), module.parameters())
    # The input, the squeezed map (4 x 32 channels) before and after its ReLU, and X'
    assert saved <= 1.1 * (maps.nbytes + 4 * out.nbytes + 4 * out.nbytes + out.nbytes)


@pytest.mark.parametrize('build', [lambda **o: dense_module(48, 8, **o), lambda **o: transition(16, **o)])
def test_all_ways_to_recompute_give_the_same_gradients(build):
    options = dict(norm=nn.BatchNorm2d, gate_norm=nn.BatchNorm1d)
    module = build(**options, with_cp=True).double().eval()
    assert module.recomputes == 'excited'
    feat = torch.randn(2, module.conv1.in_channels, 6, 8, dtype=torch.float64, requires_grad=True)
    answers = []
    for module.recomputes in ('squeezed', 'excited', 'module'):
        out = module(feat)
        answers.append(
            torch.autograd.grad(out.square().sum(), [feat, *module.parameters()], allow_unused=True)
        )
    for other in answers[1:]:
        for got, wanted in zip(other, answers[0]):
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_a_traced_network_can_be_saved():
    trunk = Trunk(dict(blocks=(1, 1), growth_rates=(8, 12))).eval()
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        traced = torch.jit.trace(trunk, image)
        torch.jit.save(traced, io.BytesIO())
    image = torch.randn(2, 3, 48, 40)
    for got, wanted in zip(traced(image), trunk(image)):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=['nchw', 'nhwc'])
@pytest.mark.parametrize(('width', 'outputs'), [(8, 32), (12, 64), (18, 96), (28, 128)])
def test_groups_are_padded_for_onednn_alone(width, outputs, layout, monkeypatch):
    seen, convolve = [], F.conv2d
    conv = GroupedConv2d(16, 4 * width, 3, padding=1, groups=4, bias=False).double()
    feat = torch.randn(2, 16, 5, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    wanted = convolve(feat, conv.weight, padding=1, groups=4)
    monkeypatch.setattr(
        F, 'conv2d', lambda *args, **kwargs: seen.append(args[1]) or convolve(*args, **kwargs)
    )
    out = conv(feat)
    assert len(seen[0]) == (outputs if layout == torch.contiguous_format else 4 * width)
    grad = torch.randn_like(out)
    inputs = (feat, conv.weight)
    answers = [(result, *torch.autograd.grad(result, inputs, grad)) for result in (wanted, out)]
    for expected, got in zip(*answers):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        conv(feat)
    assert len(seen[-1]) == 4 * width  # nothing to gain without gradients


def test_channels_last_inside_and_as_it_came_outside():
    inside = []
    conv = nn.Conv2d(3, 5, 3).double()
    conv.register_forward_hook(lambda conv, args, out: inside.append(args[0]))
    image = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        out = RunChannelsLast(conv)(image.to(memory_format=layout))
        assert inside[-1].is_contiguous(memory_format=torch.channels_last)
        assert out.is_contiguous(memory_format=layout)
        torch.testing.assert_close(out, F.conv2d(image, conv.weight, conv.bias), rtol=1e-12, atol=1e-12)


def test_weights_with_channels_last_make_maps_with_channels_last():
    trunk = Trunk(dict(blocks=(1, 1), growth_rates=(8, 12))).eval().to(memory_format=torch.channels_last)
    layouts = []
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[-1] == 3 and module.groups < 8:
            module.register_forward_hook(
                lambda conv, args, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    trunk(torch.randn(2, 3, 40, 56))
    assert len(layouts) == 3 and all(layouts)
