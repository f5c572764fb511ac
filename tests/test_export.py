"""tools/export.py on a small network, and what it refuses."""

import pytest
import torch
from tiny_run import load_tool, write_config
from torch import nn

from mmhcg import export as module
from mmhcg.runs.config import build_detector


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A folder with the config of a small detector and its checkpoint."""
    for package in ('onnxruntime', 'onnxscript'):
        pytest.importorskip(package)
    if not hasattr(torch.onnx, 'ONNXProgram'):
        pytest.skip('export needs PyTorch 2.6')
    folder = tmp_path_factory.mktemp('export')
    model = build_detector(write_config(folder))
    for norm in (m for m in model.backbone.modules() if hasattr(m, 'running_mean')):
        norm.running_mean.normal_()  # so that other weights would be noticed
    torch.save(dict(state_dict=model.state_dict()), folder / 'detector.pth')
    torch.save(model.backbone.state_dict(), folder / 'backbone.pth')
    model.eval()
    return folder, model.backbone


def export(folder, *argv):
    load_tool('export').main([str(folder / 'tiny.py'), *map(str, argv)])


@pytest.mark.slow
@pytest.mark.parametrize('weights', ['detector.pth', 'backbone.pth'])
def test_dynamic_onnx_gives_the_checkpoints_features(detector, weights, tmp_path, capsys):
    import onnxruntime

    folder, backbone = detector
    export(folder, '--checkpoint', folder / weights, '--out', tmp_path / 'model.onnx', '--dynamic')
    told = capsys.readouterr().out
    assert 'opset 18' in told
    assert told.count('largest relative error') == 3
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx', providers=['CPUExecutionProvider'])
    for size in ((3, 3, 65, 97), (1, 3, 224, 160)):
        image = torch.randn(size)
        with torch.no_grad():
            wanted = backbone(image)
        got = session.run(['c2', 'c3', 'c4', 'c5'], {'image': image.numpy()})
        for g, w in zip(got, wanted):
            assert (torch.from_numpy(g) - w).abs().max() <= 1e-4 * w.abs().max()


@pytest.mark.slow
def test_pt2_of_one_size(detector, tmp_path):
    folder, backbone = detector
    argv = ['--checkpoint', folder / 'backbone.pth', '--out', tmp_path / 'model.pt2', '--shape', 1, 64, 96]
    export(folder, *argv)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        pairs = zip(torch.export.load(tmp_path / 'model.pt2').module()(image), backbone(image))
        assert all((got - wanted).abs().max() <= 1e-4 * wanted.abs().max() for got, wanted in pairs)
    assert [path.name for path in tmp_path.iterdir()] == ['model.pt2']


@pytest.mark.slow
def test_what_cannot_be_exported_is_named(detector, tmp_path, capsys):
    folder, _ = detector
    (tmp_path / 'there.onnx').write_text('')
    cases = [
        ((folder / 'tiny.py', '--out', tmp_path / 'there.onnx'), 'there already'),
        ((folder / 'tiny.py', '--out', tmp_path / 'model.pb'), 'must end in .onnx or .pt2'),
        (('mmhcg::mask_rcnn_r50_fpn_1x_coco.py', '--out', tmp_path / 'r50.onnx'), 'ResNet and no HCGNet'),
        (('b', '--out', tmp_path / 'b.onnx', '--checkpoint', folder / 'backbone.pth'), 'does not fit HCGNet'),
        (('b', '--out', tmp_path / 'b.onnx', '--shape', 1, 0, 64), '--shape must be positive, not 1 0 64'),
        (('d', '--out', tmp_path / 'd.onnx'), 'no config file'),
    ]
    for argv, message in cases:
        with pytest.raises(SystemExit):
            load_tool('export').main([str(arg) for arg in argv])
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['there.onnx']


class Maps(nn.Module):
    """Two maps of an image, in place of a backbone and of its export."""

    def __init__(self, change=lambda maps: maps):
        super().__init__()
        self.part = nn.Dropout().eval()
        self.stem = nn.Conv2d(3, 4, 1)
        self.change = change

    def forward(self, image):
        return self.change([image.clamp(min=0), image[:, :1].exp()])


@pytest.fixture
def exported(monkeypatch, tmp_path):
    """Writes `model.pt2`, without an export: a program that gives the maps with this change."""

    def write(change=lambda maps: maps, backbone=None):
        monkeypatch.setattr(torch.onnx, 'ONNXProgram', object, raising=False)
        monkeypatch.setattr(module, '_program', lambda *args, **kwargs: None)
        monkeypatch.setattr(module, '_write_pt2', lambda b, p, path: (path.touch(), Maps(change))[1])
        return module.export(backbone or Maps(), tmp_path / 'new' / 'model.pt2', (1, 8, 8))

    return write


NAN = float('nan')


@pytest.mark.parametrize(
    'change',
    [
        lambda maps: [maps[0] * NAN, maps[1]],
        lambda maps: [maps[0], maps[1] * NAN],
        lambda maps: [maps[0], maps[1] * 1.001],
        lambda maps: maps[:1],
        lambda maps: [*maps, maps[0]],
        lambda maps: [maps[0], maps[1][..., :1]],
    ],
    ids=['NaN first', 'NaN later', 'wrong', 'one map', 'three maps', 'another shape'],
)
def test_wrong_numbers_are_not_kept(exported, tmp_path, change):
    with pytest.raises(module.ExportError, match='nothing was written'):
        exported(change)
    assert not list((tmp_path / 'new').iterdir())


def test_the_error_is_relative_to_the_largest_number_of_each_map(exported):
    (error,) = exported(lambda maps: [maps[0], maps[1] * (1 + 5e-5)])
    assert error == pytest.approx(5e-5, rel=0.01)


def test_one_size_that_is_wrong_is_enough(monkeypatch, tmp_path):
    monkeypatch.setattr(module, 'DYNAMIC_SIZES', ((1, 8, 8), (2, 8, 8)))
    monkeypatch.setattr(module, '_error', lambda backbone, run, size: NAN if size[0] == 2 else 0.0)
    monkeypatch.setattr(torch.onnx, 'ONNXProgram', object, raising=False)
    monkeypatch.setattr(module, '_program', lambda *args, **kwargs: None)
    monkeypatch.setattr(module, '_write_pt2', lambda *args: None)
    with pytest.raises(module.ExportError, match=r'0\.0e\+00, nan'):
        module.export(Maps(), tmp_path / 'model.pt2')


def test_the_backbone_stays_in_its_mode(exported):
    backbone = Maps()
    exported(backbone=backbone)
    assert (backbone.training, backbone.part.training) == (True, False)


def test_what_is_there_stays(monkeypatch, exported, tmp_path):
    there = tmp_path / 'new' / 'model.pt2'
    there.parent.mkdir()
    there.symlink_to('nowhere')
    with pytest.raises(FileExistsError, match=r'model\.pt2 is there already'):
        exported()
    there.unlink()
    monkeypatch.setattr(module, '_error', lambda *args: there.write_text('came meanwhile') * 0.0)
    with pytest.raises(FileExistsError, match=r'model\.pt2 is there already'):
        exported()
    assert [path.read_text() for path in there.parent.iterdir()] == ['came meanwhile']


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.pb' must end in \.onnx or \.pt2"):
        module.export(Maps(), tmp_path / 'model.pb')
