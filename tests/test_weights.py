"""The authors' files: read by name, checked entry by entry, equal in features to the oracle."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from authors_files import classification_layout
from mmengine.runner.checkpoint import load_checkpoint
from oracle import Oracle, random_state

from mmhcg import HCGNet
from mmhcg.weights import WeightsError, convert_checkpoint, rename_backbone, save_safetensors

TOOL = Path(__file__).parents[1] / 'tools' / 'convert_checkpoint.py'


def authors_state(arch='b'):
    state = random_state(arch, dtype=torch.float32)
    channels = state['bn1.weight'].numel()
    classifier = {'classifier.weight': torch.zeros(1000, channels), 'classifier.bias': torch.zeros(1000)}
    return {**classification_layout(state), **classifier}


def test_both_layouts_are_read_by_name_in_any_order():
    state = random_state('b')
    expected = rename_backbone(state)
    actual = rename_backbone(dict(reversed(classification_layout(state).items())))
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize('container', ['net', 'state_dict', None])
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('counters', [True, False])
def test_converted_file_has_the_features_of_the_original(tmp_path, container, zipped, counters):
    entries = authors_state()
    content = {f'module.{name}': t for name, t in entries.items() if counters or 'num_batches' not in name}
    content = {container: content, 'epoch': 629, 'acc': 78.5} if container else content
    torch.save(content, tmp_path / 'HCGNet_B_best.pth.tar', _use_new_zipfile_serialization=zipped)
    state, report = convert_checkpoint(tmp_path / 'HCGNet_B_best.pth.tar')
    assert (report.arch, report.expected) == ('b', 1623)
    assert report.loaded == (1623 if counters else sum('num_batches' not in n for n in entries) - 2)
    assert report.left_over == ('classifier.weight', 'classifier.bias')

    save_safetensors(state, tmp_path / 'out' / 'hcgnet_b_in1k.safetensors')
    model = HCGNet('b').eval()
    load_checkpoint(model, str(tmp_path / 'out' / 'hcgnet_b_in1k.safetensors'), strict=True)
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        actual = model.double()(image.double())
        expected = Oracle({k: t.double() for k, t in random_state('b', dtype=torch.float32).items()}, 'b')(
            image.double()
        )
    for a, e in zip(actual, expected):
        assert (a - e).abs().max() <= 1e-10 * e.abs().max()


def test_init_cfg_loads_a_converted_file(tmp_path):
    torch.save({'net': authors_state()}, tmp_path / 'a.pth.tar')
    save_safetensors(convert_checkpoint(tmp_path / 'a.pth.tar')[0], tmp_path / 'w.safetensors')
    model = HCGNet('b', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'w.safetensors')))
    model.init_weights()
    expected = rename_backbone(random_state('b', dtype=torch.float32))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def rename(state, old, new):
    state[new] = state.pop(old)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda s: s.pop('features.transition2.fc1.bias'), r'stages\.2\.transition\.forget\.squeeze\.bias'),
        (
            lambda s: rename(s, 'features.conv0.weight', 'features.kernel0.weight'),
            r'features\.kernel0\.weight',
        ),
        (lambda s: s.update({'features.hybridblock2.SMG7.fc1.bias': torch.zeros(24)}), 'fits no variant'),
        (lambda s: s.update({'features.conv1.weight': torch.zeros(32, 32, 3, 2)}), r'stem\.1\.conv\.weight'),
        (lambda s: s['features.norm5.weight'].fill_(float('nan')), r'stages\.3\.norm\.weight holds NaN'),
        (lambda s: s.update({'features.norm5.weight': torch.ones(1244).int()}), 'type torch.int32'),
        (lambda s: s.update({'features.norm5.weight': 'weights'}), 'no tensor but a str'),
        (
            lambda s: s.update({'bn1.weight': torch.ones(1244)}),
            r'two entries stand for stages\.3\.norm\.weight',
        ),
        (lambda s: s.clear(), 'holds no state dict'),
    ],
)
def test_what_is_not_an_authors_file_is_refused_with_the_entry(tmp_path, damage, message):
    state = authors_state()
    damage(state)
    torch.save({'net': state} if state else {}, tmp_path / 'broken.pth')
    with pytest.raises(WeightsError, match=message) as caught:
        convert_checkpoint(tmp_path / 'broken.pth')
    assert 'broken.pth' in str(caught.value)


@pytest.mark.parametrize(
    'key', ['layer1.0.conv1.weight', 'transition2.fc9.weight', 'hybridblock1.fc1.weight']
)
def test_unknown_names_are_refused(key):
    with pytest.raises(ValueError, match=key):
        rename_backbone({'hybridblock4.0.fc1.weight': torch.zeros(1, 1, 1, 1), key: torch.zeros(1)})


def test_the_tool_writes_once_and_overwrites_nothing(tmp_path, capsys):
    torch.save({'net': authors_state()}, tmp_path / 'a.pth.tar')
    command = [sys.executable, str(TOOL), str(tmp_path / 'a.pth.tar'), str(tmp_path / 'w.safetensors')]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert 'HCGNet-B: 1623 of 1623' in run.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith('.')] == []
    content = (tmp_path / 'w.safetensors').read_bytes()

    spec = importlib.util.spec_from_file_location('convert_checkpoint_tool', TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    with pytest.raises(SystemExit, match='2'):
        tool.main(command[2:])
    assert 'is there already' in capsys.readouterr().err
    assert (tmp_path / 'w.safetensors').read_bytes() == content
    with pytest.raises(SystemExit, match='2'):
        tool.main([str(tmp_path / 'absent.pth'), str(tmp_path / 'other.safetensors')])
    assert 'no such file' in capsys.readouterr().err
