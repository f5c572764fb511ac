"""mmcv's operators for particular necks and heads, by `mmcv.ops`, against their definition or records."""

from typing import Callable

import numpy as np
import pytest
import torch
from mmcv_records import SUMS, devices, random_rois, record
from torch.autograd import gradcheck

from mmhcg.stack import has_compiled_mmcv  # which provides mmcv._ext

pytest.importorskip('mmcv')
from mmcv import ops
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

pytestmark = pytest.mark.skipif(has_compiled_mmcv(), reason='mmcv is compiled here')

# float64 sums of up to a few hundred terms of size 1, in another order
EXACT = {'rtol': 1e-12, 'atol': 1e-12}


def normal(*shape: int, seed: int = 0, device: str = 'cpu') -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values).to(device).requires_grad_()


def bilinear(plane: np.ndarray, y: float, x: float) -> np.ndarray:
    """Values (C,) of `plane` (C, H, W) between its cells; beyond them lie zeros."""
    rows, columns = (
        np.maximum(1 - abs(place - np.arange(n)), 0) for place, n in zip((y, x), plane.shape[1:])
    )
    return (plane * rows[:, None] * columns).sum((1, 2))


# CARAFE


def carafe_by_definition(feat: np.ndarray, masks: np.ndarray, k: int, groups: int, scale: int) -> np.ndarray:
    """Equation 3 of Wang et al. for each result; `masks` (N, groups * k * k, scale * H, scale * W)."""
    n, channels, height, width = feat.shape
    out = np.zeros((n, channels, scale * height, scale * width))
    for b, c, i, j in np.ndindex(*out.shape):
        group = c // (channels // groups)
        for y, x in np.ndindex(k, k):
            row, column = i // scale + y - k // 2, j // scale + x - k // 2
            if 0 <= row < height and 0 <= column < width:
                out[b, c, i, j] += masks[b, (group * k + y) * k + x, i, j] * feat[b, c, row, column]
    return out


@devices
@pytest.mark.parametrize('k, groups, scale', [(5, 1, 2), (3, 2, 3), (1, 4, 1)])
def test_carafe(k: int, groups: int, scale: int, device: str) -> None:
    feat = normal(2, 4, 5, 3, device=device)
    masks = normal(2, groups * k * k, 5 * scale, 3 * scale, seed=1, device=device)
    arrays = (x.detach().cpu().numpy() for x in (feat, masks))
    expected = carafe_by_definition(*arrays, k, groups, scale)
    out = ops.carafe(feat, masks, k, groups, scale)
    np.testing.assert_allclose(out.detach().cpu(), expected, **EXACT)


def test_carafe_gradcheck() -> None:
    feat, masks = normal(2, 4, 3, 2), normal(2, 18, 6, 4, seed=1)
    assert gradcheck(lambda *x: ops.carafe(*x, 3, 2, 2), (feat, masks))


# Masked convolution


@devices
@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_masked_conv_is_a_convolution_where_the_mask_is(share: float, device: str) -> None:
    layer = ops.MaskedConv2d(3, 5, (3, 5), padding=(1, 2)).to(device)
    feat = torch.randn(1, 3, 9, 7, device=device)
    mask = torch.rand(1, 9, 7, device=device) < share
    with torch.no_grad():
        out, expected = layer(feat, mask), layer(feat) * mask
    assert mask.any() == (share > 0)
    np.testing.assert_allclose(out.cpu(), expected.cpu(), **SUMS)


# Deformable RoI pooling


def deform_roi_pool_by_definition(
    feat: np.ndarray, rois: np.ndarray, offset: np.ndarray, bins: tuple[int, int], ratio: int
) -> np.ndarray:
    """Equation 6 of Dai et al. at scale 0.25 and gamma 0.1, for each sample of aligned RoIAlign."""
    out, size = np.zeros((len(rois), feat.shape[1], *bins)), np.array(feat.shape[2:])
    for k, p, q in np.ndindex(len(rois), *bins):
        x1, y1, x2, y2 = rois[k, 1:] * 0.25 - 0.5
        side = np.array([y2 - y1, x2 - x1])
        step = side / bins
        corner = (y1, x1) + step * (p, q) + 0.1 * side * offset[k, ::-1, p, q]
        counts = [ratio, ratio] if ratio else np.ceil(step).astype(int)
        for sample in np.ndindex(*np.maximum(counts, 0)):
            point = corner + (np.array(sample) + 0.5) / counts * step
            if (point >= -1).all() and (point <= size).all():
                out[k, :, p, q] += bilinear(feat[int(rois[k, 0])], *point.clip(0, size - 1)) / np.prod(counts)
    return out


@devices
@pytest.mark.parametrize('moved', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool(ratio: int, moved: bool, device: str) -> None:
    feat, rois = normal(2, 3, 13, 17, device=device), random_rois(9, 13, 17, 0.25)
    rois[0, 3:] = rois[0, 1:3] - 3  # turned inside out
    rois[1, 3:] = rois[1, 1:3]  # of zero size
    offset = normal(9, 2, 3, 5, seed=1, device=device) if moved else None
    out = ops.deform_roi_pool(feat, rois.to(device), offset, (3, 5), 0.25, ratio, 0.1)
    moves = offset.detach().cpu().numpy() if moved else np.zeros((9, 2, 3, 5))
    expected = deform_roi_pool_by_definition(feat.detach().cpu().numpy(), rois.numpy(), moves, (3, 5), ratio)
    np.testing.assert_allclose(out.detach().cpu(), expected, **EXACT)


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_gradcheck(ratio: int) -> None:
    rois = random_rois(5, 5, 6, 0.5)
    feat, offset = normal(2, 2, 5, 6), normal(5, 2, 2, 3, seed=1)
    assert gradcheck(lambda *x: ops.deform_roi_pool(x[0], rois, x[1], (2, 3), 0.5, ratio), (feat, offset))
    assert gradcheck(lambda x: ops.deform_roi_pool(x, rois, None, (2, 3), 0.5, ratio), feat)


@pytest.mark.parametrize('count', [0, 3])
def test_rois_without_samples_give_zeros(count: int) -> None:
    feat, offset = normal(1, 3, 8, 8), normal(count, 2, 7, 7)
    out = ops.deform_roi_pool(feat, torch.zeros(count, 5), offset, 7)
    out.sum().backward()
    assert out.shape == (count, 3, 7, 7)
    assert not out.any() and not feat.grad.any()


# Multi-scale deformable attention


def attention_by_definition(
    value: np.ndarray, shapes: list[tuple[int, int]], points: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Equation 3 of Zhu et al. without its projections: a sum of samples for each query and head."""
    out = np.zeros((*points.shape[:3], value.shape[3]))
    for n, query, head, level, point in np.ndindex(*weights.shape):
        height, width = shapes[level]
        first = sum(h * w for h, w in shapes[:level])
        plane = value[n, first : first + height * width, head].T.reshape(-1, height, width)
        x, y = points[n, query, head, level, point] * (width, height) - 0.5
        out[n, query, head] += weights[n, query, head, level, point] * bilinear(plane, y, x)
    return out.reshape(*out.shape[:2], -1)


def attend(value: torch.Tensor, shapes: torch.Tensor, *points: torch.Tensor) -> torch.Tensor:
    """What `MultiScaleDeformableAttention` computes on the GPU."""
    start = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    return MultiScaleDeformableAttnFunction.apply(value, shapes, start, *points, 64)


@devices
def test_attention_as_recorded(device: str) -> None:
    data = record('ms_deform_attn', device)
    tensors = [data[key].requires_grad_() for key in ('value', 'loc', 'weights')]
    out = attend(tensors[0], data['shapes'], *tensors[1:])
    out.backward(data['gout'])
    np.testing.assert_allclose(out.detach().cpu(), data['out'].cpu(), **SUMS)
    for key, tensor in zip(('value', 'loc', 'weights'), tensors):
        expected = data[f'g{key}'].cpu()
        np.testing.assert_allclose(tensor.grad.cpu(), expected, **SUMS, err_msg=key)


@devices
def test_attention_by_definition_and_gradcheck(device: str) -> None:
    shapes = [(3, 5), (2, 1)]
    value = normal(2, 17, 2, 3, device=device)
    points = torch.rand(2, 3, 2, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = (1.4 * points - 0.2).to(device).requires_grad_()  # some of them outside
    weights = normal(2, 3, 2, 2, 2, seed=1, device=device)
    arrays = [x.detach().cpu().numpy() for x in (value, points, weights)]
    levels = torch.tensor(shapes, device=device)
    out = attend(value, levels, points, weights)
    expected = attention_by_definition(arrays[0], shapes, *arrays[1:])
    np.testing.assert_allclose(out.detach().cpu(), expected, **EXACT)
    assert gradcheck(lambda v, *x: attend(v, levels, *x), (value, points, weights))


# Deformable convolution with offsets of a larger map


@devices
def test_modulated_deform_conv_with_offsets_of_a_larger_map(device: str) -> None:
    data = record('modulated_deform_conv_larger_offset', device)
    names = ['input', 'offset', 'mask', 'weight', 'bias']
    tensors = [data[key].requires_grad_() for key in names]
    out = ops.modulated_deform_conv2d(*tensors, *data['args'].tolist())
    out.backward(data['gout'])
    assert out.shape[2:] < tensors[1].shape[2:]
    np.testing.assert_allclose(out.detach().cpu(), data['out'].cpu(), **SUMS)
    for key, tensor in zip(names, tensors):
        np.testing.assert_allclose(tensor.grad.cpu(), data[f'g{key}'].cpu(), **SUMS, err_msg=key)


def test_modulated_deform_conv_refuses_offsets_of_a_smaller_map() -> None:
    tensors = (torch.ones(1, *shape) for shape in [(2, 6, 6), (18, 3, 6), (9, 3, 6)])
    with pytest.raises(RuntimeError, match=r'offset output dims: \(3, 6\)'):
        ops.modulated_deform_conv2d(*tensors, torch.ones(4, 2, 3, 3), None, 1, 1)


# Batch normalization over processes


@pytest.mark.parametrize('tracked', [True, False])
@pytest.mark.parametrize('ranks', [1, 2])
def test_sync_bn(ranks: int, tracked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # every other process has the same batch, so that a sum over all of them is a multiple
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda group: ranks)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x, group: x.mul_(ranks))
    torch.manual_seed(0)
    layer = ops.SyncBatchNorm(3, track_running_stats=tracked)
    plain = torch.nn.BatchNorm2d(3, track_running_stats=tracked)
    plain.load_state_dict(layer.state_dict())
    x = (torch.randn(2, 3, 5, 7) * 3 + 1).requires_grad_()
    grad = torch.randn(2, 3, 5, 7)
    expected = plain(torch.cat([x] * ranks))
    wanted = torch.autograd.grad(expected, [x, *plain.parameters()], torch.cat([grad] * ranks))
    out = layer(x)
    gradients = torch.autograd.grad(out, [x, *layer.parameters()], grad)
    np.testing.assert_allclose(out.detach(), expected[:2].detach(), **SUMS)
    for result, want in zip(gradients, wanted):
        np.testing.assert_allclose(result, want / ranks, **SUMS)
    for name, buffer in layer.named_buffers():
        np.testing.assert_allclose(buffer, plain.get_buffer(name), **SUMS, err_msg=name)


def test_sync_bn_of_a_single_value_keeps_its_variance_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one value there is no unbiased variance; as in mmcv, the biased one stands in, which is 0."""
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda group: 1)
    monkeypatch.setattr(torch.distributed, 'all_reduce', lambda x, group: x)
    layer = ops.SyncBatchNorm(3)
    layer(torch.rand(1, 3, 1, 1))
    np.testing.assert_allclose(layer.running_var, 0.9, rtol=1e-6)  # 0.9 x 1 + 0.1 x 0


# All of them


ROIS = random_rois(9, 13, 17, 0.25).bfloat16()  # in float16 they are the same
SHAPES = torch.tensor([[13, 17]])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    'function, shapes',
    [
        (lambda *x: ops.carafe(*x, 5, 1, 2), [(2, 4, 9, 7), (2, 25, 18, 14)]),
        (
            lambda x, *moves: ops.deform_roi_pool(x, ROIS.to(x), *moves, 7, 0.25),
            [(2, 4, 13, 17), (9, 2, 7, 7)],
        ),
        (lambda v, *x: attend(v, SHAPES, *x), [(2, 221, 2, 4), (2, 5, 2, 1, 3, 2), (2, 5, 2, 1, 3)]),
    ],
    ids=['carafe', 'deform_roi_pool', 'attention'],
)
def test_half_precision_rounds_only_its_result(
    function: Callable[..., torch.Tensor], shapes: list[tuple[int, ...]], dtype: torch.dtype
) -> None:
    halves = [normal(*shape, seed=i).detach().to(dtype) for i, shape in enumerate(shapes)]
    exact = [x.float().requires_grad_() for x in halves]
    halves = [x.requires_grad_() for x in halves]
    out, expected = function(*halves), function(*exact)
    out.backward(out.detach())
    expected.backward(out.detach().float())
    assert torch.equal(out, expected.to(dtype))
    for half, full in zip(halves, exact):
        assert torch.equal(half.grad, full.grad.to(dtype))
