"""The Triton programs, on a GPU and in Triton's interpreter, against float64; and that they compile for GPUs.

Triton reads TRITON_INTERPRET when it is imported, so that one test runs all others of this file in a process
of their own.
"""

import os
import subprocess
import sys
import warnings
from contextlib import contextmanager

import pytest
import torch
from compare import trunk_of
from oracle import Oracle, random_state
from torch import nn
from torch.nn import functional as F

from mmhcg.analysis.operators import saved_bytes
from mmhcg.network import Trunk, deploy
from mmhcg.network.fast import kernels
from mmhcg.network.fast.kernels.source import Source
from mmhcg.network.gates import ForgetGate, UpdateGate, run_gates
from mmhcg.network.smg import dense_module, transition

triton = pytest.importorskip('triton', minversion='3.4', reason='the kernels need Triton 3.4')
GPUTarget = pytest.importorskip('triton.backends.compiler').GPUTarget

IS_INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cpu' if IS_INTERPRETED or not torch.cuda.is_available() else 'cuda'
everywhere = pytest.mark.skipif(
    not IS_INTERPRETED and DEVICE == 'cpu', reason='runs on GPUs and inside test_in_the_interpreter'
)
compiled = pytest.mark.skipif(IS_INTERPRETED, reason='Triton does not compile where it interprets')

LAYOUTS = (torch.contiguous_format, torch.channels_last)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NORMS = dict(norm=nn.BatchNorm2d, gate_norm=nn.BatchNorm1d)


@pytest.fixture(autouse=True)
def with_kernels_and_float32_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    with kernels.enabled():
        yield


@pytest.mark.slow
@compiled
def test_in_the_interpreter():
    pytest.importorskip('triton', minversion='3.8', reason="Triton 3.5's interpreter cannot run them")
    command = [sys.executable, '-m', 'pytest', __file__, '-q', '-n', '0', '-p', 'no:cacheprovider']
    environment = {**os.environ, 'TRITON_INTERPRET': '1', 'OMP_NUM_THREADS': '1'}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert ' passed' in run.stdout and ' failed' not in run.stdout


def random_norms(module, seed=0):
    """The module in eval mode with norms as after some training; a fifth of their scales negative."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.weight.data = torch.randn(norm.weight.shape, generator=generator) * 0.5 + 0.5
            norm.bias.data = torch.randn(norm.weight.shape, generator=generator) * 0.3
            norm.running_mean = torch.randn(norm.weight.shape, generator=generator) * 0.3
            norm.running_var = torch.rand(norm.weight.shape, generator=generator) + 0.5
    return module.eval().to(DEVICE)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def error(actual, exact):
    """Relative; what should be 0 may be 1e-6."""
    return ((actual.double() - exact).norm() / exact.norm().clamp(min=1e-6)).item()


def assert_rounds_like_plain(function, plain, tensors, precision):
    """Results and gradients of `function` are at most twice as far from float64 as those of `plain`.

    Args:
        function, plain: Of the same tensors, to one tensor.
        tensors: In float64, by name.
        precision: Of each tensor, by name.
    """
    rounded = {name: tensor.to(precision[name]) for name, tensor in tensors.items()}
    answers = []
    for call, cast in ((plain, torch.Tensor.double), (plain, torch.clone), (function, torch.clone)):
        own = {name: cast(tensor).detach().requires_grad_() for name, tensor in rounded.items()}
        out = call(**own)
        if not answers:
            grad = normal(*out.shape, seed=9)
            if set(precision.values()) != {torch.float32}:
                grad *= out.abs() > 0.05  # a half's rounding could take others through a ReLU
        gradients = torch.autograd.grad(out, list(own.values()), grad.to(out.dtype))
        answers.append(dict(zip(['out', *own], [out, *gradients])))
    exact, *answers = answers
    # Where GPUs round to the nearest bfloat16, the interpreter cuts off.
    factor = 3 if torch.bfloat16 in precision.values() else 2
    for name, value in exact.items():
        expected, actual = (error(answer[name], value) for answer in answers)
        assert actual <= factor * expected + 1e-6, (name, actual, expected)
    return answers[1]['out']


def plain_squeeze(scale, shift, weight, bias, **maps):
    feat = torch.cat(list(maps.values()), 1)
    dtype, columns = feat.dtype, (slice(None), None, None)
    feat = F.relu(feat * scale[columns].to(dtype) + shift[columns].to(dtype))
    return F.relu(F.conv2d(feat, weight[..., None, None], bias.to(dtype)))


def fused_squeeze(scale, shift, weight, bias, **maps):
    return kernels.squeeze(tuple(maps.values()), scale, shift, weight, bias)


@everywhere
@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'nhwc'])
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize(
    ('channels', 'outputs', 'batch', 'size'),
    [
        ((23,), 45, 1, (1, 97)),
        ((23, 22), 20, 2, (9, 13)),
        ((64, 45), 130, 1, (8, 8)),
        ((3, 17, 109), 16, 2, (5, 1)),
    ],
)
def test_squeeze(channels, outputs, batch, size, dtype, layout):
    total = sum(channels)
    tensors = dict(
        scale=normal(total, seed=1),
        shift=normal(total, seed=2),
        weight=normal(outputs, total, seed=3) / total**0.5,
        bias=normal(outputs, seed=4),
    )
    precision = dict(scale=torch.float32, shift=torch.float32, weight=dtype, bias=torch.float32)
    for i, width in enumerate(channels):
        tensors[f'map{i}'] = normal(batch, width, *size, seed=5 + i).contiguous(memory_format=layout)
        precision[f'map{i}'] = dtype
    out = assert_rounds_like_plain(fused_squeeze, plain_squeeze, tensors, precision)
    assert out.is_contiguous(memory_format=layout)


@contextmanager
def setting(backend, name, value):
    """Monkeypatch would delete what is looked up by `__getattr__`."""
    before = getattr(backend, name)
    setattr(backend, name, value)
    try:
        yield
    finally:
        setattr(backend, name, before)


@pytest.mark.parametrize('convolutions', [True, False])
def test_float32_products_are_as_exact_as_what_they_replace(convolutions):
    """The squeeze replaces a convolution, the gates' products replace matrix products."""
    matmul, cudnn, ones = torch.backends.cuda.matmul, torch.backends.cudnn, torch.ones(1, 4, 2, 3)

    def precisions():
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            sources = [Source([ones], ones, ones, pooled=pooled) for pooled in (False, True)]
        return [source.options['PRECISION'] for source in sources]

    expected = ['tf32', 'ieee'] if convolutions else ['ieee', 'tf32']
    with setting(cudnn, 'allow_tf32', convolutions), setting(matmul, 'allow_tf32', not convolutions):
        assert precisions() == expected
    if hasattr(cudnn, 'conv'):  # PyTorch 2.9's setting
        with (
            setting(cudnn.conv, 'fp32_precision', expected[0]),
            setting(matmul, 'fp32_precision', expected[1]),
        ):
            assert precisions() == expected


@everywhere
@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'nhwc'])
def test_squeeze_reads_slices_of_channels_and_copies_what_is_no_such_slice(layout):
    buffer = normal(2, 40, 5, 7).float().contiguous(memory_format=layout)
    crop, repeated = (
        normal(2, 6, 9, 9).float()[:, :, 2:7, 1:8],
        normal(1, 4, 5, 7).float().expand(2, -1, -1, -1),
    )
    maps = dict(a=buffer[:, 3:20], b=crop, c=repeated, d=buffer[:1, 20:21].expand(2, -1, -1, -1))
    total = sum(feat.shape[1] for feat in maps.values())
    parameters = [
        normal(*shape, seed=i).float() for i, shape in enumerate([(total,), (total,), (8, total), (8,)])
    ]
    assert error(fused_squeeze(*parameters, **maps), plain_squeeze(*parameters, **maps).double()) < 1e-6


@everywhere
@pytest.mark.parametrize('dtype', DTYPES, ids=str)
def test_squeeze_with_bounds(dtype):
    feat, weight, bias = (
        normal(2, 23, 5, 7).to(dtype),
        normal(20, 23, seed=1).to(dtype),
        normal(20, seed=2).to(dtype),
    )
    lower = normal(23, seed=3).to(dtype)
    upper = (lower + 1).index_fill(0, torch.arange(0, 23, 2, device=DEVICE), torch.inf)
    out = kernels.squeeze((feat,), lower, upper, weight, bias, clamp=True)
    bounded = feat.double().maximum(lower[:, None, None]).minimum(upper[:, None, None])
    exact = F.relu(torch.einsum('oc,nchw->nohw', weight.double(), bounded) + bias.double()[:, None, None])
    assert out.dtype == dtype
    assert error(out, exact) < 2 * torch.finfo(dtype).eps


class Gates(nn.Module):
    """v and f of a map, side by side."""

    def __init__(self, channels):
        super().__init__()
        self.update = UpdateGate(channels, reduction=2, **NORMS)
        self.forget = ForgetGate(channels, reduction=2, gate_norm=nn.BatchNorm1d)

    def forward(self, feat):
        return torch.cat(run_gates(self.update, self.forget, feat), 1)


def gates_of(channels):
    torch.manual_seed(0)
    return random_norms(Gates(channels))


@everywhere
@pytest.mark.parametrize(
    ('channels', 'batch', 'size', 'dtype', 'layout'),
    [
        *((23, 2, (9, 13), dtype, layout) for dtype in DTYPES for layout in LAYOUTS),
        (45, 1, (3, 97), torch.float32, LAYOUTS[1]),
        (109, 2, (2, 1), torch.float16, LAYOUTS[0]),
        (8, 1, (33, 57), torch.bfloat16, LAYOUTS[0]),
    ],
    ids=str,
)
def test_gates(channels, batch, size, dtype, layout):
    """All of both gates' numbers through all of their parameters, in float32, from maps in any precision."""
    gates = gates_of(channels)
    parameters = {name.replace('.', '__'): p.detach().double() for name, p in gates.named_parameters()}
    buffers = dict(gates.named_buffers())

    def call(feat, **own):
        own = {name.replace('__', '.'): tensor for name, tensor in own.items()}
        like = own['forget.squeeze.weight']
        state = {**own, **{name: buffer.to(like) for name, buffer in buffers.items()}}
        return torch.func.functional_call(gates, state, (feat,))

    def plain(**tensors):
        with kernels.enabled(False):
            return call(**tensors)

    feat = 3 * normal(batch, channels, *size, seed=1).contiguous(memory_format=layout)
    precision = {**dict.fromkeys(parameters, torch.float32), 'feat': dtype}
    assert_rounds_like_plain(call, plain, {'feat': feat, **parameters}, precision)


@everywhere
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('name', ['hybridblock1.0', 'hybridblock2.0'])
def test_modules_against_the_oracle(name, dtype):
    """Dense modules whose input comes in two maps, float32 parameters, bfloat16 by autocast."""
    arch = ((1, 1), (20, 24))
    state = {key: tensor.to(DEVICE) for key, tensor in random_state(arch).items()}
    single = {key: t.float() if t.is_floating_point() else t for key, t in state.items()}
    trunk = trunk_of(state, dict(blocks=arch[0], growth_rates=arch[1]), torch.float32).eval().to(DEVICE)
    stage = int(name[len('hybridblock')]) - 1
    module, width = trunk.stages[stage].block[0], arch[1][stage]
    options = (4 * width, width, 4, 1)
    feat = normal(2, len(state[f'{name}.conv1_1x1.bn1.weight']), 7, 9)
    answers = []
    for precision, function in (
        (torch.float64, lambda x: Oracle(state, arch).smg(name, x, *options)),
        (torch.float32, lambda x: Oracle(single, arch).smg(name, x, *options)),
        (torch.float32, lambda x: module(*x.split([7, x.shape[1] - 7], 1))),
    ):
        x = feat.to(precision).requires_grad_()
        is_half = torch.bfloat16 in (dtype, precision) and precision != torch.float64
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=is_half):
            out = function(x)
        answers.append((out, *torch.autograd.grad(out, x, normal(*out.shape, seed=1).to(out.dtype))))
    for exact, plain, ours in zip(*answers):
        assert ours.dtype == plain.dtype
        assert error(ours, exact) <= 2 * error(plain, exact)


@everywhere
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('layout', LAYOUTS, ids=['nchw', 'nhwc'])
def test_deployed_trunk(dtype, layout):
    trunk = random_norms(Trunk(dict(blocks=(1, 2), growth_rates=(8, 12))))
    image = normal(2, 3, 33, 57).contiguous(memory_format=layout)
    exact = [feat.detach() for feat in trunk.double()(image)]
    deployed = deploy(trunk.to(dtype))
    with torch.no_grad():
        ours = deployed(image.to(dtype))
        with kernels.enabled(False):
            plain = deployed(image.to(dtype))
    for o, p, e in zip(ours, plain, exact):
        assert error(o, e) <= 2 * error(p, e)
        assert o.is_contiguous(memory_format=layout)


@everywhere
@pytest.mark.parametrize('with_cp', [False, True])
def test_training_step_equals_the_plain_one(with_cp):
    trunk = random_norms(Trunk(dict(blocks=(1, 2), growth_rates=(8, 12)), with_cp=with_cp))
    answers = []
    for on in (False, True):
        trunk.zero_grad()
        with kernels.enabled(on):
            sum(feat.square().mean() for feat in trunk(normal(1, 3, 24, 32).float())).backward()
        assert all(p.grad is not None for p in trunk.parameters())  # or DDP waits for them
        answers.append([p.grad.clone() for p in trunk.parameters()])
    largest = max(gradient.abs().max() for gradient in answers[0])
    for wanted, got in zip(*answers):
        assert (got - wanted).abs().max() <= 1e-4 * max(wanted.abs().max(), 1e-2 * largest)


@everywhere
def test_little_more_is_kept_for_the_backward_pass():
    module = dense_module(32, 16, **NORMS).eval().to(DEVICE)
    maps = normal(1, 32, 40, 60).float().requires_grad_()
    with kernels.enabled(False):
        plain, _ = saved_bytes(lambda: module(maps), module.parameters())
    ours, _ = saved_bytes(lambda: module(maps), module.parameters())
    softmax, weights = 3 * 40 * 60 * 4, 64 * 32 * 4 + 3 * 20 * 16 * 4
    assert ours <= plain + 1.2 * (softmax + weights)


@everywhere
def test_the_switch_and_what_the_kernels_leave_to_pytorch(monkeypatch):
    calls = []
    for name in ('squeeze', 'pooled_sums'):
        function = getattr(kernels, name)
        monkeypatch.setattr(
            kernels,
            name,
            lambda *args, function=function, name=name, **kwargs: (
                calls.append(name) or function(*args, **kwargs)
            ),
        )
    dense, down = (make.eval().to(DEVICE) for make in (dense_module(16, 8, **NORMS), transition(16, **NORMS)))
    feat = normal(2, 16, 5, 6).float()

    def called(module, feat):
        calls.clear()
        module(feat)
        return list(calls)

    assert called(dense, feat) == ['squeeze', 'pooled_sums']
    assert called(down, feat) == ['pooled_sums']  # its map has been through norm and ReLU
    assert called(dense.double(), feat.double()) == []
    dense.float()
    with kernels.enabled(False):
        assert called(dense, feat) == []
    dense.train()
    assert called(dense, feat) == []
    monkeypatch.setattr(kernels, 'is_compiling', lambda: True)
    assert called(dense.eval(), feat) == []
    monkeypatch.undo()
    code = (
        'from mmhcg.network.fast import kernels; import torch; '
        'print(kernels.usable(torch.ones(1, device=DEVICE)))'
    )
    code = code.replace('DEVICE', repr(DEVICE))
    for value in '01':
        environment = {**os.environ, 'MMHCG_KERNELS': value}
        run = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
        assert run.stdout.split() == [str(value == '1')], run.stderr


class NoDevice:
    """In place of a driver, so that Triton compiles for a GPU that is not there."""

    def __init__(self, capability):
        self.target = GPUTarget('cuda', capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return self.target


@compiled
@pytest.mark.parametrize(
    ('capability', 'dtype', 'layout'), [(80, torch.float32, LAYOUTS[0]), (90, torch.bfloat16, LAYOUTS[1])]
)
def test_programs_compile_for_gpus(capability, dtype, layout, monkeypatch, tmp_path):
    made = []

    def compile_only(self, grid):
        return lambda *args, **kwargs: made.append(self.run(*args, grid=grid, warmup=True, **kwargs))

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(triton.runtime.jit.JITFunction, '__getitem__', compile_only)
    monkeypatch.setattr(kernels, '_runs_on', lambda device: True)
    driver = triton.runtime.driver
    # Named so since Triton 3.5.
    monkeypatch.setattr(driver, '_active' if hasattr(driver, '_active') else 'active', NoDevice(capability))
    module = dense_module(40, 16, **NORMS).eval()
    maps = [torch.zeros(1, c, 8, 8, requires_grad=True).to(memory_format=layout) for c in (24, 16)]
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
        module(*maps).sum().backward()
    names = [kernel.metadata.name for kernel in made]
    assert names == [
        'product',
        'product',
        'fold',
        'sums',
        'product',
        'fold',
        'sums',
        'spread',
        'sums',
        'spread',
    ]
    assert all(kernel.asm['cubin'] for kernel in made)


@compiled
def test_on_cpus_the_plain_formulation_runs():
    assert not kernels.usable(torch.ones(1))
