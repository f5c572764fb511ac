"""tools/visualize.py: shown is what the network used, where it is; what cannot be shown is said."""

from __future__ import annotations

import csv
from pathlib import Path
from weakref import ref

import cv2
import numpy as np
import pytest
import torch
from tiny_run import CLASSES, CONFIGS, load_tool, write_config, write_data
from torch.nn import functional as F

from mmhcg.analysis import gate_pictures
from mmhcg.analysis import visualize as drawing
from mmhcg.analysis.gate_pictures import Photo, save_attention, save_features, save_forget_gates
from mmhcg.analysis.looking import Look, ModuleView, enlarge, looking, principal_colours, spread
from mmhcg.network import Trunk
from mmhcg.network.gates import ForgetGate, UpdateGate
from mmhcg.network.smg import SMG
from mmhcg.runs import UserError
from mmhcg.runs.config import build_detector

ARCH = dict(blocks=(1, 2, 1), growth_rates=(8, 8, 12))


def sharp_trunk() -> Trunk:
    """A small trunk in float64 whose gates look at some places much more than at others."""
    torch.manual_seed(0)
    trunk = Trunk(ARCH).double().eval()
    for module in trunk.modules():
        if isinstance(module, SMG):
            for pool in (module.update.pool3, module.update.pool5):
                torch.nn.init.uniform_(pool.norm.weight, 0.5, 2)
                torch.nn.init.normal_(pool.norm.bias)
                torch.nn.init.normal_(pool.project.weight, std=2)
            torch.nn.init.normal_(module.forget.expand.weight, std=5)
    return trunk


@pytest.mark.parametrize('size', [(33, 57), (64, 64)])
def test_the_maps_shown_are_those_used(size):
    trunk, used = sharp_trunk(), {}
    modules = [module for module in trunk.modules() if isinstance(module, SMG)]
    for module in modules:
        for part in (module.conv2, module.update, module.forget):
            part.register_forward_hook(lambda part, args, out: used.update({part: (*args, out)}))
    hooks = [dict(module._forward_hooks) for module in trunk.modules()]
    with torch.no_grad(), looking(trunk) as look:
        outs = trunk(torch.randn(2, 3, *size, dtype=torch.float64))  # the first of two images is looked at
    assert [dict(module._forward_hooks) for module in trunk.modules()] == hooks
    assert [(view.stage, view.name) for view in look.modules] == [
        (1, 'module 1'),
        *((2, name) for name in ('transition', 'module 1', 'module 2')),
        *((3, name) for name in ('transition', 'module 1')),
    ]
    in_order = [stage.transition for stage in trunk.stages], [list(stage.block) for stage in trunk.stages]
    in_order = [module for first, rest in zip(*in_order) for module in (first, *rest) if module is not None]
    for view, module in zip(look.modules, in_order):
        assert spread(view.attention3) < 0.9
        pools, shown = (module.update.pool3, module.update.pool5), (view.attention3, view.attention5)
        for pool, attention, wanted in zip(pools, shown, used[module.update]):
            excited = pool.depthwise(F.relu(pool.norm(used[module.conv2][-1])))  # as the paper writes it
            context = (excited * attention.double()).sum((2, 3))
            torch.testing.assert_close(context[0], wanted[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(view.kept.double(), used[module.forget][-1][0], rtol=1e-6, atol=1e-6)
        assert view.kept.std() > 0.01
    for shown, out in zip(look.stages, outs):
        torch.testing.assert_close(shown.double(), out[0], rtol=1e-6, atol=1e-6)
    assert tuple(look.strides) == trunk.out_strides
    assert [view.stride for view in look.modules] == [4, 8, 8, 8, 16, 16]


def test_positions_lie_above_their_pixels():
    # A map that counts its positions: what is shown at pixel x of the input is x / stride.
    feat = torch.arange(5.0).expand(1, 3, 5)
    whole = enlarge(feat, 4, (10, 20), (10, 20))
    assert whole.shape == (1, 10, 20)
    torch.testing.assert_close(whole[0, 7, :17], torch.arange(17) / 4)
    torch.testing.assert_close(whole[0, 0, 17:], torch.full((3,), 4.0))  # there is no sixth position
    half = enlarge(feat.mT, 4, (16, 12), (8, 6))  # pixel 0 of the half is between 0 and 1 of the input
    torch.testing.assert_close(half[0, :, 3], (2 * torch.arange(8) + 0.5) / 4)


def test_positions_see_what_is_around_their_pixels():
    # Against the network itself; its gates see the whole image, and are left out.
    trunk, image = sharp_trunk(), torch.randn(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    for module in trunk.modules():
        if isinstance(module, (UpdateGate, ForgetGate)):
            module.register_forward_hook(lambda gate, args, out: out.detach())
    for out, stride in zip(trunk(image), trunk.out_strides):
        (gradient,) = torch.autograd.grad(out[0, :, 2, 3].sum(), image, retain_graph=True)
        weight = gradient.abs().sum((0, 1))
        y, x = ((weight.sum(1 - axis) * torch.arange(96)).sum() / weight.sum() for axis in (0, 1))
        assert abs(y - 2 * stride) < stride / 4
        assert abs(x - 3 * stride) < stride / 4


def test_spread_and_colours_by_hand():
    assert spread(torch.full((4, 5), 1 / 20)) == pytest.approx(1)
    assert spread(torch.eye(1, 20).view(4, 5)) == pytest.approx(1 / 20)
    assert spread(torch.tensor([[0.5, 0.5, 0, 0]])) == pytest.approx(1 / 2)
    ramp, other = torch.linspace(-1, 1, 100), torch.linspace(-1, 1, 100).square()
    feat = torch.stack((3 * ramp, 4 * ramp, other - other.mean())).view(3, 10, 10)
    colours, shares = principal_colours(feat)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    variances = torch.tensor([25 * ramp.var(), other.var(), 0])
    torch.testing.assert_close(shares, variances / variances.sum(), rtol=1e-4, atol=1e-6)
    red = colours[0].flatten()
    assert (red.diff() >= 0).all()
    assert (red[0], red[-1]) == (0, 1)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory) -> Path:
    """A folder with tiny.py, weights of its detector at random, and photographs."""
    folder = tmp_path_factory.mktemp('looking')
    torch.manual_seed(0)
    model = build_detector(write_config(folder))
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'weights.pth')
    photo = cv2.imread(str(min((write_data(folder) / 'val2017').glob('*.png'))))
    cv2.imwrite(str(folder / 'wide.png'), photo[:40])  # (40, 64): padded to (64, 64), with the stride of 32
    (folder / 'broken.png').write_bytes(b'no image')
    (folder / 'more').mkdir()
    cv2.imwrite(str(folder / 'more' / 'wide.jpg'), photo)
    return folder


def view(stage: int = 2, stride: int = 8) -> ModuleView:
    """A module that looks at row 2, column 4 with its 3x3 kernel, and a bit at 0, 3 with its 5x5 one."""
    attention3, attention5 = torch.full((3, 5), 1 / 30), torch.full((3, 5), 1 / 20)
    attention3[2, 4] += 1 / 2
    attention5[0, 3] += 1 / 4
    return ModuleView(stage, 'module 1', stride, attention3, attention5, torch.tensor([0.25, 0.5]))


def test_pixels_of_the_input_are_found_in_the_photograph():
    photo = Photo(np.zeros((40, 80, 3), np.uint8), (20, 20))
    assert photo.place(5, 5) == (20, 10)  # (x, y): four times and twice as large


def test_numbers_of_attention_by_hand(tmp_path, monkeypatch):
    drawn, show = [], gate_pictures._show

    def noted(axis, pixels, title, **options):
        drawn.append(pixels)
        return show(axis, pixels, title, **options)

    monkeypatch.setattr(gate_pictures, '_show', noted)
    photo = Photo(np.zeros((48, 80, 3), np.uint8), (24, 40))  # half as large in the network
    save_attention([view()], photo, tmp_path / 'attention.png')
    three, five = rows_of(tmp_path / 'attention.csv')
    assert [row['kernel'] for row in (three, five)] == ['3', '5']
    assert (three['stage'], three['module'], three['height'], three['width']) == ('2', 'module 1', '3', '5')
    assert (float(three['peak_x']), float(three['peak_y'])) == (2 * 4 * 8, 2 * 2 * 8)
    assert (float(five['peak_x']), float(five['peak_y'])) == (2 * 3 * 8, 0)
    assert float(three['peak_times_average']) == pytest.approx(15 * (1 / 30 + 1 / 2))
    assert float(five['peak_times_average']) == pytest.approx(15 * (1 / 20 + 1 / 4))
    assert float(three['share_of_image']) == pytest.approx(spread(view().attention3), abs=1e-4)
    # Drawn is how much a place counts beside the average, at the peak and elsewhere: of 15 places.
    first, second = (pixels for pixels in drawn if pixels.shape[2:] == (1,))
    assert (first.max(), first.min()) == pytest.approx((15 * (1 / 30 + 1 / 2), 15 / 30), rel=1e-3)
    # This one's peak lies between two pixels of the picture.
    assert (second.max(), second.min()) == pytest.approx((15 * (1 / 20 + 1 / 4), 15 / 20), rel=0.05)


def test_numbers_of_features_and_gates_by_hand(tmp_path):
    feat = torch.zeros(3, 3, 4)
    feat[1] = torch.arange(12.0).view(3, 4)  # with a zero of its own: 25 of 36
    look = Look([view(1, 4), view(2, 8)], [feat], [8])
    save_features(look, Photo(np.zeros((24, 32, 3), np.uint8), (24, 32)), tmp_path / 'features.png')
    (row,) = rows_of(tmp_path / 'features.csv')
    assert [row[key] for key in ('stage', 'channels', 'height', 'width')] == ['1', '3', '3', '4']
    assert float(row['share_of_zeros']) == pytest.approx(25 / 36, abs=1e-4)
    assert (float(row['mean']), float(row['component1'])) == (pytest.approx(66 / 36, abs=1e-4), 1)
    save_forget_gates(look.modules, tmp_path / 'gates.png')
    kept = [(row['stage'], row['channel'], float(row['kept'])) for row in rows_of(tmp_path / 'gates.csv')]
    assert kept == [(stage, channel, kept) for stage in '12' for channel, kept in (('0', 0.25), ('1', 0.5))]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def visualize(*options: object) -> None:
    load_tool('visualize').main([str(option) for option in options])


def test_every_picture_has_its_numbers(tiny, tmp_path, capsys):
    argv = [
        tiny / 'tiny.py',
        tiny / 'weights.pth',
        tiny / 'wide.png',
        '--out',
        tmp_path / 'out',
        '--score-thr',
        0.5,
    ]
    visualize(*argv)
    folder = tmp_path / 'out' / 'wide'
    names = ['detections', *(f'attention_stage{i}' for i in (1, 2, 3, 4)), 'features', 'forget_gates']
    assert {path.name for path in folder.iterdir()} == {f'{n}.{end}' for n in names for end in ('png', 'csv')}
    for name in names:
        assert cv2.imread(str(folder / f'{name}.png')).std() > 5, name
    printed = capsys.readouterr()
    assert 'image 1 of 1, wide.png: detecting' in printed.err
    assert str(folder) in printed.out

    found = rows_of(folder / 'detections.csv')
    assert found
    assert {row['label'] for row in found} <= set(CLASSES)
    assert min(float(row['score']) for row in found) > 0.5
    assert cv2.imread(str(folder / 'detections.png')).shape == (320, 512, 3)  # eight times as large
    kept = rows_of(folder / 'forget_gates.csv')
    assert {(row['stage'], row['module']) for row in kept} == {
        (str(stage), name) for stage in (1, 2, 3, 4) for name in ('transition', 'module 1')
    } - {('1', 'transition')}
    assert all(0 < float(row['kept']) < 1 for row in kept)
    assert [row['channels'] for row in rows_of(folder / 'features.csv')] == ['72', '44', '30', '23']
    first, second = rows_of(folder / 'attention_stage1.csv')
    assert (first['kernel'], second['kernel'], first['height'], first['width']) == ('3', '5', '16', '16')
    assert 0 < float(first['share_of_image']) <= 1

    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        visualize(*argv)
    assert stop.value.code == 2
    assert 'is there already' in capsys.readouterr().err


def test_photographs_are_looked_at_first_and_not_kept(tiny, tmp_path, monkeypatch):
    kept, read = [], drawing._read

    def noted(image):
        pixels = read(image)
        kept.append(ref(pixels))
        return pixels

    def stop(*_):
        raise UserError(f'{sum(pixels() is not None for pixels in kept)} of {len(kept)} kept')

    monkeypatch.setattr(drawing, '_read', noted)
    monkeypatch.setattr(drawing, 'load_detector', stop)
    names = ('wide.png', next((tiny / 'shapes' / 'val2017').iterdir()))
    with pytest.raises(UserError, match='0 of 2 kept'):
        drawing.visualize('any.py', 'any.pth', [tiny / name for name in names], tmp_path / 'out')


@pytest.mark.parametrize(
    ('config', 'weights', 'images', 'message'),
    [
        ('tiny.py', 'weights.pth', ['none.png'], 'no image at'),
        (
            'tiny.py',
            'weights.pth',
            ['wide.png', 'broken.png'],
            '/broken.png is no image or a damaged one: put a whole one there, or',
        ),
        ('tiny.py', 'weights.pth', ['wide.png', 'more/wide.jpg'], 'has the same name'),
        ('tiny.py', 'none.pth', ['wide.png'], 'no checkpoint at'),
        (CONFIGS / 'mask_rcnn_hcgnet_demo_shapes.py', 'weights.pth', ['wide.png'], 'does not fit'),
        (CONFIGS / 'mask_rcnn_r50_fpn_1x_coco.py', 'weights.pth', ['wide.png'], 'no HCGNet'),
    ],
)
def test_what_cannot_be_shown_is_said_before_anything_is_written(
    config, weights, images, message, tiny, tmp_path, capsys
):
    images = [tiny / image for image in images]
    with pytest.raises(SystemExit) as stop:
        visualize(tiny / config, tiny / weights, *images, '--out', tmp_path / 'out')
    assert stop.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()[-1:]
    assert message in told
    assert not (tmp_path / 'out').exists()
