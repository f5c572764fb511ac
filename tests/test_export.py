"""tools/export.py on a small network, and what it refuses."""

import pytest
import torch
from tiny_run import load_tool, write_config

from mmhcg.runs.config import build_detector

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

pytestmark = pytest.mark.slow
if not hasattr(torch.onnx, 'ONNXProgram'):
    pytest.skip('export needs PyTorch 2.6', allow_module_level=True)


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    """A folder with the config of a small detector and its checkpoint."""
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


def test_pt2_of_one_size(detector, tmp_path):
    folder, backbone = detector
    argv = ['--checkpoint', folder / 'backbone.pth', '--out', tmp_path / 'model.pt2', '--shape', 1, 64, 96]
    export(folder, *argv)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        pairs = zip(torch.export.load(tmp_path / 'model.pt2').module()(image), backbone(image))
        assert all((got - wanted).abs().max() <= 1e-4 * wanted.abs().max() for got, wanted in pairs)
    assert [path.name for path in tmp_path.iterdir()] == ['model.pt2']


def test_what_cannot_be_exported_is_named(detector, tmp_path, capsys):
    folder, _ = detector
    (tmp_path / 'there.onnx').write_text('')
    cases = [
        ((folder / 'tiny.py', '--out', tmp_path / 'there.onnx'), 'there already'),
        ((folder / 'tiny.py', '--out', tmp_path / 'model.pb'), 'must end in .onnx or .pt2'),
        (('mmhcg::mask_rcnn_r50_fpn_1x_coco.py', '--out', tmp_path / 'r50.onnx'), 'ResNet and no HCGNet'),
        (('b', '--out', tmp_path / 'b.onnx', '--checkpoint', folder / 'backbone.pth'), 'does not fit HCGNet'),
        (('d', '--out', tmp_path / 'd.onnx'), 'no config file'),
    ]
    for argv, message in cases:
        with pytest.raises(SystemExit):
            load_tool('export').main([str(arg) for arg in argv])
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['there.onnx']


def test_wrong_numbers_are_not_kept(detector, tmp_path, monkeypatch):
    from mmhcg import export as module

    _, backbone = detector
    monkeypatch.setattr(module, '_error', lambda *args: float('nan'))
    with pytest.raises(module.ExportError, match='nothing was written'):
        module.export(backbone, tmp_path / 'model.pt2', (1, 64, 96))
    assert not list(tmp_path.iterdir())
