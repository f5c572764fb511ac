"""mmcv's operators, by `mmcv.ops`, against compiled mmcv's recorded answers or their definition in NumPy."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv_records import SUMS, devices, random_rois, record
from torch.autograd import gradcheck

from mmhcg.stack import has_compiled_mmcv  # which provides mmcv._ext

pytest.importorskip('mmcv')
from mmcv import _ext, ops

pytestmark = pytest.mark.skipif(has_compiled_mmcv(), reason='mmcv is compiled here')


def assert_same_detections(keep: torch.Tensor, expected: torch.Tensor, scores: torch.Tensor) -> None:
    """The same boxes, best first; mmcv does not sort stably, so equal scores may come in either order."""
    assert sorted(keep.tolist()) == sorted(expected.tolist())
    assert torch.equal(scores[keep], scores[expected])


def distinct_map(*shape: int) -> torch.Tensor:
    """A float64 map whose values all differ by at least 1, so that maxima have derivatives."""
    values = np.random.default_rng(0).permutation(math.prod(shape)).reshape(shape)
    return torch.from_numpy(values.astype(np.float64))


# Non-maximum suppression


@devices
@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('percent', [30, 50, 70])
def test_nms(percent: int, offset: int, device: str) -> None:
    data = record('nms', device)
    dets, keep = ops.nms(data['boxes'], data['scores'], percent / 100, offset=offset)
    assert_same_detections(keep, data[f'keep_{percent}' + '_offset1' * offset], data['scores'])
    assert torch.equal(dets, torch.cat((data['boxes'], data['scores'][:, None]), 1)[keep])


@devices
def test_nms_with_score_threshold_and_max_num(device: str) -> None:
    data = record('nms', device)
    _, keep = ops.nms(data['boxes'], data['scores'], 0.5, score_threshold=0.3, max_num=20)
    assert_same_detections(keep, data['keep_50_score30_max20'], data['scores'])


@devices
@pytest.mark.parametrize('split_thr', [10000, 10])
def test_batched_nms(split_thr: int, device: str) -> None:
    data = record('nms', device)
    config = {'type': 'nms', 'iou_threshold': 0.5, 'split_thr': split_thr}
    dets, keep = ops.batched_nms(data['boxes'], data['scores'], data['idxs'], config)
    assert_same_detections(keep, data['batched_keep'], data['scores'])
    np.testing.assert_allclose(dets[:, 4].cpu(), data['batched_dets'][:, 4].cpu(), rtol=0, atol=0)
    assert torch.equal(dets[:, :4], data['boxes'][keep])


def test_nms_of_numpy_and_of_nothing() -> None:
    data = record('nms')
    _, keep = ops.nms(data['boxes'].numpy(), data['scores'].numpy(), 0.5)
    assert isinstance(keep, np.ndarray)
    assert_same_detections(torch.from_numpy(keep), data['keep_50'], data['scores'])
    dets, keep = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and keep.shape == (0,)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_nms_in_half_precision_is_that_of_the_rounded_boxes(dtype: torch.dtype) -> None:
    data = record('nms')
    boxes, scores = data['boxes'].to(dtype), data['scores'].to(dtype)
    _, keep = ops.nms(boxes, scores, 0.5)
    _, expected = ops.nms(boxes.float(), scores.float(), 0.5)
    assert torch.equal(keep, expected)


@devices
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method: str, device: str) -> None:
    data = record('soft_nms', device)
    dets, keep = ops.soft_nms(data['boxes'], data['scores'], 0.3, 0.5, 1e-3, method)
    assert torch.equal(keep, data[f'{method}_inds'])
    # a score is the product of up to 200 factors, each rounded
    np.testing.assert_allclose(dets.cpu(), data[f'{method}_dets'].cpu(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize('offset, kept', [(0, [0, 1]), (1, [0])])
def test_soft_nms_offset_widens_the_boxes(offset: int, kept: list[int]) -> None:
    # IoU 1/3 without offset, and (2 x 3) / (9 + 9 - 6) = 1/2 with it
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]])
    _, keep = ops.soft_nms(boxes, torch.tensor([0.9, 0.8]), 0.4, method='naive', offset=offset)
    assert keep.tolist() == kept


def test_soft_nms_keeps_empty_boxes_and_accepts_none() -> None:
    empty = torch.tensor([[1.0, 1, 1, 1]]).repeat(3, 1)
    for method in ('naive', 'linear', 'gaussian'):
        dets, keep = ops.soft_nms(empty, torch.tensor([0.3, 0.9, 0.5]), method=method)
        assert keep.tolist() == [1, 2, 0]
        assert dets[:, 4].tolist() == pytest.approx([0.9, 0.5, 0.3])
    dets, keep = ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5) and keep.shape == (0,)


@devices
def test_nms_match(device: str) -> None:
    data = record('nms_match', device)
    groups = ops.nms_match(torch.cat((data['boxes'], data['scores'][:, None]), 1), 0.5)
    assert [index for index, group in enumerate(groups) for _ in group] == data['group'].tolist()
    assert torch.equal(torch.cat(groups), data['member'])


# RoIs


@devices
@pytest.mark.parametrize('variant', [f's{s}_sr{r}_al{a}' for s in ('7x7', '3x5') for r in '02' for a in '01'])
def test_roi_align(variant: str, device: str) -> None:
    check_roi_align('roi_align', 'avg', variant, device)


@devices
@pytest.mark.parametrize('variant', ['s7x7_sr0_al1', 's7x7_sr2_al1'])
def test_roi_align_max(variant: str, device: str) -> None:
    check_roi_align('roi_align_max', 'max', variant, device)


def check_roi_align(name: str, pool_mode: str, variant: str, device: str) -> None:
    data = record(name, device)
    size, ratio, aligned = variant.split('_')
    align = ops.RoIAlign(
        output_size=tuple(map(int, size[1:].split('x'))),
        spatial_scale=0.25,
        sampling_ratio=int(ratio[2:]),
        pool_mode=pool_mode,
        aligned=aligned == 'al1',
    )
    feat = data['input'].requires_grad_()
    out = align(feat, data['rois'])
    out.backward(data[f'{variant}_gout'])
    np.testing.assert_allclose(out.detach().cpu(), data[f'{variant}_out'].cpu(), **SUMS)
    np.testing.assert_allclose(feat.grad.cpu(), data[f'{variant}_gin'].cpu(), **SUMS)


@pytest.mark.parametrize('pool_mode', ['avg', 'max'])
@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_gradcheck(ratio: int, aligned: bool, pool_mode: str) -> None:
    feat, rois = distinct_map(2, 1, 5, 6).requires_grad_(), random_rois(5, 5, 6, 0.5)
    assert gradcheck(lambda x: ops.roi_align(x, rois, (2, 3), 0.5, ratio, pool_mode, aligned), feat)


def test_roi_align_max_without_alignment_is_at_least_one_cell() -> None:
    # the RoI of zero size becomes a 1 x 1 cell, sampled at its middle: the mean of four cells
    feat = torch.arange(16.0).view(1, 1, 4, 4)
    out = ops.roi_align(feat, torch.tensor([[0.0, 1, 1, 1, 1]]), 1, 1.0, 0, 'max', False)
    assert out.item() == (5 + 6 + 9 + 10) / 4


def roi_pool_by_definition(
    feat: np.ndarray, rois: np.ndarray, bins: tuple[int, int], scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Output of RoIPool and its index into the map, -1 if a bin is empty; after the definition of mmcv.

    Bin b spans floor(start + b * size / bins) to ceil(start + (b + 1) * size / bins), where the RoI ends one
    pixel of the image after x2 and y2.
    """
    height, width = feat.shape[2:]
    out = np.zeros((len(rois), feat.shape[1], *bins), np.float32)
    index = np.full(out.shape, -1)

    def cells(start: np.float32, end: np.float32, count: int, size: int) -> list[list[int]]:
        edges = start + np.arange(count + 1, dtype=np.float32) * ((end - start) / np.float32(count))
        return [
            [cell for cell in range(size) if math.floor(low) <= cell < math.ceil(high)]
            for low, high in zip(edges[:-1], edges[1:])
        ]

    for k, roi in enumerate(rois.astype(np.float32)):
        x1, y1, x2, y2 = (roi[1:] + np.array([0, 0, 1, 1], np.float32)) * np.float32(scale)
        rows, columns = cells(y1, y2, bins[0], height), cells(x1, x2, bins[1], width)
        for p, q in np.ndindex(*bins):
            if rows[p] and columns[q] and x2 > x1 and y2 > y1:
                values = feat[int(roi[0])][:, rows[p]][:, :, columns[q]].reshape(feat.shape[1], -1)
                out[k, :, p, q] = values.max(1)
                index[k, :, p, q] = [
                    rows[p][best // len(columns[q])] * width + columns[q][best % len(columns[q])]
                    for best in values.argmax(1)
                ]
    return out, index


@devices
@pytest.mark.parametrize('bins', [(7, 7), (3, 5), (1, 1)])
@pytest.mark.parametrize('scale', [1.0, 0.25])
def test_roi_pool(scale: float, bins: tuple[int, int], device: str) -> None:
    rng = np.random.default_rng(0)
    feat = torch.from_numpy(rng.standard_normal((2, 3, 13, 17), np.float32)).to(device).requires_grad_()
    rois = random_rois(9, 13, 17, scale).float()
    rois[0, 3:] = rois[0, 1:3] - 3  # turned inside out
    rois[1, 1:] = torch.tensor([4.0, 4.0, 4.0, 4.0]) / scale  # a single pixel, at the edge of a cell
    rois[2, 1:] = torch.tensor([2.0, 3.0, 9.0, 11.0]) / scale - torch.tensor([0, 0, 1, 1])  # whole cells
    out = ops.roi_pool(feat, rois.to(device), bins, scale)
    grad = torch.from_numpy(rng.standard_normal(out.shape, np.float32))
    out.backward(grad.to(device))

    expected, index = roi_pool_by_definition(feat.detach().cpu().numpy(), rois.numpy(), bins, scale)
    expected_grad = np.zeros(feat.shape, np.float32)
    for k, c, p, q in np.argwhere(index >= 0):
        y, x = divmod(index[k, c, p, q], 17)
        expected_grad[int(rois[k, 0]), c, y, x] += grad[k, c, p, q]
    np.testing.assert_array_equal(out.detach().cpu(), expected)
    np.testing.assert_allclose(feat.grad.cpu(), expected_grad, **SUMS)
    assert (index == -1).any() and (index >= 0).any()


def test_roi_pool_gradcheck() -> None:
    rois = random_rois(5, 5, 6, 0.5)
    assert gradcheck(lambda x: ops.roi_pool(x, rois, (2, 3), 0.5), distinct_map(2, 1, 5, 6).requires_grad_())


@pytest.mark.parametrize(
    'pool',
    [
        lambda feat, rois: ops.roi_align(feat, rois, 7),
        lambda feat, rois: ops.roi_align(feat, rois, 7, 1.0, 0, 'max'),
        lambda feat, rois: ops.roi_pool(feat, rois, 7),
    ],
    ids=['avg', 'max', 'pool'],
)
def test_no_rois(pool: callable) -> None:
    feat = torch.ones(1, 3, 8, 8, requires_grad=True)
    out = pool(feat, torch.zeros(0, 5))
    out.sum().backward()
    assert out.shape == (0, 3, 7, 7)
    assert not feat.grad.any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_roi_align_in_half_precision_rounds_only_its_result(dtype: torch.dtype) -> None:
    data = record('roi_align')
    feat, rois = data['input'].to(dtype), data['rois'].to(dtype)
    exact = feat.float().requires_grad_()
    expected = ops.roi_align(exact, rois.float(), 7, 0.25)
    half = feat.requires_grad_()
    out = ops.roi_align(half, rois, 7, 0.25)
    out.backward(out.detach())
    expected.backward(out.detach().float())
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(half.grad, exact.grad.to(dtype))


# Deformable convolution


@devices
@pytest.mark.parametrize('variant', ['plain', 'groups', 'dil'])
@pytest.mark.parametrize('name', ['deform_conv', 'modulated_deform_conv'])
def test_deform_conv(name: str, variant: str, device: str) -> None:
    data = {
        key[len(variant) + 1 :]: value
        for key, value in record(name, device).items()
        if key.startswith(variant)
    }
    names = (
        ['input', 'offset', 'weight']
        if name == 'deform_conv'
        else ['input', 'offset', 'mask', 'weight', 'bias']
    )
    function = ops.deform_conv2d if name == 'deform_conv' else ops.modulated_deform_conv2d
    tensors = [data[key].requires_grad_() for key in names]
    out = function(*tensors, *data['args'].tolist())
    out.backward(data['gout'])
    np.testing.assert_allclose(out.detach().cpu(), data['out'].cpu(), **SUMS)
    for key, tensor in zip(names, tensors):
        np.testing.assert_allclose(tensor.grad.cpu(), data[f'g{key}'].cpu(), **SUMS, err_msg=key)


@pytest.mark.parametrize('bias', [True, False])
def test_modulated_deform_conv_gradcheck(bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    # height and width, stride, padding and dilation all differ: none may be mistaken for the other
    shapes = [(1, 2, 5, 6), (1, 12, 3, 6), (1, 6, 3, 6), (2, 2, 2, 3), (2,)][: 4 + bias]
    tensors = [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes
    ]
    tensors += [] if bias else [None]
    geometry = ((2, 1), (1, 1), (2, 1), 1, 1)
    assert gradcheck(lambda *x: ops.modulated_deform_conv2d(*x, *geometry), tensors)


def test_deform_conv_tells_height_from_width() -> None:
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(1, 2, 9, 8, generator=generator)
    weight = torch.randn(3, 2, 2, 3, generator=generator)
    geometry = ((2, 1), (1, 0), (1, 2))
    expected = torch.nn.functional.conv2d(feat, weight, None, *geometry)
    offset = torch.zeros(1, 12, *expected.shape[2:])
    np.testing.assert_allclose(ops.deform_conv2d(feat, offset, weight, *geometry), expected, **SUMS)
    ones = torch.ones(1, 6, *expected.shape[2:])
    out = ops.modulated_deform_conv2d(feat, offset, ones, weight, None, *geometry)
    np.testing.assert_allclose(out, expected, **SUMS)


def test_deform_conv_trains_under_autocast() -> None:
    layer = ops.ModulatedDeformConv2dPack(4, 6, 3, padding=1)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    feat = torch.randn(2, 4, 9, 8)
    expected = layer(feat)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(feat)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    # offsets and maps have 8 bits; sums have 36 terms of about the size of the result
    np.testing.assert_allclose(out.detach().float(), expected.detach(), rtol=0, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


# Focal loss


def focal_by_definition(
    logits: np.ndarray, target: np.ndarray, gamma: float, alpha: float, weight: np.ndarray
) -> np.ndarray:
    """Equation 5 of Lin et al. for each logit of a sigmoid; rows are weighted by their target's class."""
    p = 1 / (1 + np.exp(-logits))
    loss = -(1 - alpha) * p**gamma * np.log(1 - p)
    for row, label in enumerate(target):
        if label < logits.shape[1]:
            loss[row, label] = -alpha * (1 - p[row, label]) ** gamma * np.log(p[row, label])
            loss[row] *= weight[label]
    return loss


@devices
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6), (0.0, 0.3)])
def test_sigmoid_focal_loss(gamma: float, alpha: float, weighted: bool, device: str) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, (20, 5)), rng.integers(0, 6, 20)  # class 5 is background
    weight = rng.uniform(0.5, 2, 5) if weighted else np.ones(5)
    expected = focal_by_definition(logits, target, gamma, alpha, weight)
    args = torch.tensor(target, device=device), gamma, alpha
    weights = torch.tensor(weight, device=device) if weighted else None
    x = torch.tensor(logits, device=device, requires_grad=True)
    out = ops.sigmoid_focal_loss(x, *args, weights, 'none')
    np.testing.assert_allclose(out.detach().cpu(), expected, rtol=1e-12, atol=0)
    for reduction, total in (('sum', expected.sum()), ('mean', expected.sum() / 20)):
        assert ops.sigmoid_focal_loss(x, *args, weights, reduction).item() == pytest.approx(total, rel=1e-12)
    assert gradcheck(lambda y: ops.sigmoid_focal_loss(y, *args, weights, 'none'), x)
    assert gradcheck(lambda y: ops.sigmoid_focal_loss(y, *args, weights, 'mean'), x)


@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_sigmoid_focal_loss_is_finite_for_certain_logits(gamma: float) -> None:
    logits = torch.tensor([[-200.0, 200], [200, -200]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0, 0]), gamma, 0.25, None, 'sum')
    loss.backward()
    # row 0 is wrong twice: alpha * 200 and (1 - alpha) * 200; row 1 is right
    assert loss.item() == pytest.approx(200)
    np.testing.assert_allclose(logits.grad, [[-0.25, 0.75], [0, 0]], rtol=1e-6, atol=1e-30)


@devices
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6), (0.0, 0.3)])
def test_softmax_focal_loss(gamma: float, alpha: float, weighted: bool, device: str) -> None:
    rng = np.random.default_rng(0)
    logits, target = rng.normal(0, 3, (20, 5)), rng.integers(0, 5, 20)
    weight = rng.uniform(0.5, 2, 5) if weighted else np.ones(5)
    p = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(20), target]
    expected = -alpha * (1 - p) ** gamma * np.log(p) * weight[target]
    args = torch.tensor(target, device=device), gamma, alpha
    weights = torch.tensor(weight, device=device) if weighted else None
    x = torch.tensor(logits, device=device, requires_grad=True)
    out = ops.softmax_focal_loss(x, *args, weights, 'none')
    np.testing.assert_allclose(out.detach().cpu(), expected, rtol=1e-12, atol=0)
    # not with 'none': there mmcv multiplies gradients (K, C) by (K,)
    assert gradcheck(lambda y: ops.softmax_focal_loss(y, *args, weights, 'sum'), x)


def test_negative_targets_are_background_to_a_sigmoid_and_ignored_by_a_softmax() -> None:
    """Whatever the weight of the last class, which is where an index of -1 would lead."""
    rng = np.random.default_rng(0)
    logits, weight = rng.normal(0, 3, (3, 4)), rng.uniform(0.5, 2, 4)
    x, weights = torch.tensor(logits, requires_grad=True), torch.tensor(weight)
    target = torch.tensor([-1, 2, -2])
    loss = ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weights, 'none')
    expected = focal_by_definition(logits, np.array([4, 2, 4]), 2.0, 0.25, weight)  # class 4 is background
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-12, atol=0)

    loss = ops.softmax_focal_loss(x, target, 2.0, 0.25, weights, 'none')
    p = np.exp(logits[1, 2]) / np.exp(logits[1]).sum()
    np.testing.assert_allclose(
        loss.detach(), [0, -0.25 * (1 - p) ** 2 * np.log(p) * weight[2], 0], rtol=1e-12, atol=0
    )
    ops.softmax_focal_loss(x, target, 2.0, 0.25, weights, 'sum').backward()
    assert x.grad.any(1).tolist() == [False, True, False]


def test_softmax_focal_loss_is_finite_for_a_probability_of_exactly_0() -> None:
    logits = torch.tensor([[200.0, -200]], requires_grad=True)
    assert logits.softmax(1)[0, 1] == 0
    loss = ops.softmax_focal_loss(logits, torch.tensor([1]), 2.0, 0.25, None, 'sum')
    loss.backward()
    # the least that a normal float32 can be stands in for 0
    assert loss.item() == pytest.approx(-0.25 * math.log(torch.finfo(torch.float32).tiny), rel=1e-6)
    assert logits.grad.isfinite().all()


# What is not there


def test_an_absent_operator_is_named_when_called() -> None:
    wanted = r"'border_align_forward'.*pip install mmcv==2\.1\.0 --no-binary"
    with pytest.raises(NotImplementedError, match=wanted):
        ops.border_align(torch.ones(1, 4, 4, 4), torch.ones(1, 16, 4), 5)


def test_no_operator_in_private_names() -> None:
    assert not hasattr(_ext, '__path__')
    assert not hasattr(_ext, '_private')


# What a training that diverges gives them

NOT_FINITE = """
import sys, torch, mmhcg
from mmcv import ops
device, values = sys.argv[1], map(float, sys.argv[2:])
feat = torch.rand(1, 4, 9, 9, device=device, requires_grad=True)
weight = torch.rand(4, 4, 3, 3, device=device)
for value in values:
    offset = torch.zeros(1, 18, 9, 9, device=device)
    offset[0, 3, 4, 5] = value
    offset.requires_grad_()
    rois = torch.tensor([[0, 1, 1, 5, 5], [0, 1, value, 5, 5]], device=device)
    for out in (
        ops.deform_conv2d(feat, offset, weight, 1, 1),
        ops.modulated_deform_conv2d(feat, offset, torch.ones_like(offset[:, ::2]), weight, None, 1, 1),
        ops.roi_align(feat, rois, (2, 1), 1.0, 0, 'avg'),
        ops.roi_align(feat, rois, (2, 1), 1.0, 0, 'max'),
    ):
        out.sum().backward()
        assert out.isnan().any(1).equal(out.isnan().all(1))
        print(out.isnan().any(1).nonzero().tolist(), flush=True)
"""


@pytest.mark.slow
@devices
def test_positions_that_are_not_finite_give_nan_there(device: str) -> None:
    """In a process of its own, which they used to end."""
    command = [sys.executable, '-c', NOT_FINITE, device, 'nan', '-inf']
    result = subprocess.run(command, capture_output=True, text=True)
    convolved, pooled = '[[0, 4, 5]]', '[[1, 0, 0], [1, 1, 0]]'
    expected = [convolved, convolved, pooled, pooled]
    assert result.stdout.splitlines() == 2 * expected, result.stderr[-500:]
    assert result.returncode == 0
