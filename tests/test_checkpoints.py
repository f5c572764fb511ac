"""Checkpoints are loaded safely, MMEngine's own with all that they hold, and damage is reported as such."""

import os
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_with_prefix

import mmhcg  # noqa: F401  registers the loaders
from mmhcg.stack import checkpoint_sources
from mmhcg.stack.checkpoints import CheckpointError, load_checkpoint_file

WAYS = ['native', 'PyTorch 2.1'] if hasattr(torch.serialization, 'safe_globals') else ['PyTorch 2.1']


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both unpicklers, where PyTorch has its own; and no torch.load without weights_only=True."""
    if request.param != 'native':
        monkeypatch.delattr(torch.serialization, 'safe_globals', raising=False)
    load = torch.load

    def checked_load(*args: Any, **kwargs: Any) -> Any:
        assert kwargs['weights_only'] is True
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, 'load', checked_load)


def replace_pickle(source: Path, target: Path, edit: Any) -> None:
    """Copy a checkpoint with its pickle run through `edit`, a function of bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, 'w') as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, edit(data) if name.endswith('/data.pkl') else data)


# MMEngine's own checkpoints


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def forward(self, *inputs: torch.Tensor, mode: str = 'tensor') -> Any:
        out = self.layers(torch.stack(inputs))
        return {'loss': out.square().mean()} if mode == 'loss' else [out]


class Accuracy(BaseMetric):
    """A score that is a NumPy number, as metrics of many projects are."""

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(1)

    def compute_metrics(self, results: list) -> dict[str, np.float64]:
        return {'accuracy': np.float64(0.5)}


def runner(work_dir: Path, **kwargs: Any) -> Runner:
    """A run with all that adds to a checkpoint: schedules, moving average, best score."""
    data = {'batch_size': 2, 'dataset': list(torch.randn(8, 2)), 'sampler': {'type': 'DefaultSampler'}}
    return Runner(
        Model(),
        str(work_dir),
        train_dataloader=data,
        val_dataloader=data,
        val_cfg={},
        val_evaluator={'type': Accuracy},
        train_cfg={'by_epoch': True, 'max_epochs': 3},
        optim_wrapper={'optimizer': {'type': 'AdamW', 'lr': 0.1}},
        param_scheduler=[
            {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 3},
            {'type': 'MultiStepLR', 'milestones': [1, 2]},
            {'type': 'OneCycleLR', 'eta_max': 0.1, 'total_steps': 30, 'by_epoch': False},
            {'type': 'ReduceOnPlateauLR', 'monitor': 'accuracy'},
        ],
        custom_hooks=[{'type': 'EMAHook'}],
        default_hooks={
            'checkpoint': {
                'type': 'CheckpointHook',
                'interval': 1,
                'save_best': 'accuracy',
                'rule': 'greater',
            },
            'logger': {'type': 'LoggerHook', 'interval': 1},
        },
        experiment_name=work_dir.name,
        **kwargs,
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work_dir = tmp_path_factory.mktemp('trained')
    runner(work_dir).train()
    return work_dir


def test_resume(trained: Path, tmp_path: Path, way: None) -> None:
    resumed = runner(tmp_path, load_from=str(trained / 'epoch_2.pth'), resume=True)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (3, 12)
    assert resumed.message_hub.get_info('best_score') == 0.5
    saved, whole = (load_checkpoint_file(trained / f'epoch_{epoch}.pth')['message_hub'] for epoch in (2, 3))
    loss = resumed.message_hub.get_scalar('train/loss').data[0]
    assert loss.shape == (12,)
    np.testing.assert_array_equal(loss[:8], saved['log_scalars']['train/loss'].data[0])
    lr = resumed.message_hub.get_scalar('train/lr').data[0]
    np.testing.assert_allclose(lr, whole['log_scalars']['train/lr'].data[0], rtol=1e-12, atol=0)
    assert len(set(lr[8:])) == 4  # it still moves


def test_resuming_does_not_run_a_configuration(trained: Path, tmp_path: Path) -> None:
    """MMEngine executes meta['config'] of a checkpoint, which it never writes itself."""
    checkpoint = load_checkpoint_file(trained / 'epoch_2.pth')
    checkpoint['meta']['config'] = f'open({str(tmp_path / "canary")!r}, "w").close()'
    torch.save(checkpoint, tmp_path / 'config.pth')
    resumed = runner(tmp_path, load_from=str(tmp_path / 'config.pth'), resume=True)
    resumed.train()
    assert not (tmp_path / 'canary').exists()


def test_log_has_its_methods(trained: Path, way: None) -> None:
    log = load_checkpoint_file(trained / 'epoch_2.pth')['message_hub']['log_scalars']['train/loss']
    assert type(log) is HistoryBuffer
    assert log.statistics('max') == log.data[0].max()
    assert log.statistics('current') == log.data[0][-1]


@pytest.mark.parametrize('module', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_files_of_both_numpys(trained: Path, tmp_path: Path, way: None, module: str) -> None:
    def rename(data: bytes) -> bytes:
        data, count = re.subn(rb'cnumpy\._?core\.multiarray\n', f'c{module}\n'.encode(), data)
        assert count
        return data

    replace_pickle(trained / 'epoch_2.pth', tmp_path / 'renamed.pth', rename)
    saved, renamed = (
        load_checkpoint_file(path)['message_hub']['log_scalars']['train/loss'].data
        for path in (trained / 'epoch_2.pth', tmp_path / 'renamed.pth')
    )
    np.testing.assert_array_equal(saved, renamed)


@pytest.mark.parametrize('dtype', ['bool', 'int8', 'uint64', 'float16', 'complex128', 'U3', 'S3', '>f4'])
def test_numpy_arrays_and_numbers(tmp_path: Path, way: None, dtype: str) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    torch.save({'array': array, 'number': array[1, 1]}, tmp_path / 'numpy.pth')
    loaded = load_checkpoint_file(tmp_path / 'numpy.pth')
    np.testing.assert_array_equal(loaded['array'], array)
    assert loaded['array'].dtype == array.dtype.newbyteorder('=')  # numpy itself swaps bytes on reading
    assert loaded['number'] == array[1, 1] and type(loaded['number']) is type(array[1, 1])


@pytest.mark.parametrize('zipped', [True, False])
def test_weights(tmp_path: Path, way: None, zipped: bool) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool)
    weights = OrderedDict((str(dtype), torch.arange(4).to(dtype)) for dtype in dtypes)
    weights['parameter'] = nn.Parameter(torch.ones(2, 3))
    torch.save(weights, tmp_path / 'weights.pth', _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint_file(tmp_path / 'weights.pth')
    assert list(loaded) == list(weights)
    assert all(
        torch.equal(loaded[key], weights[key]) and loaded[key].dtype == weights[key].dtype for key in weights
    )


# Files that run code


class Call:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def attacks(canary: Path) -> dict[str, tuple[Any, str]]:
    touch = f'__import__("pathlib").Path({str(canary)!r}).touch()'
    return {
        'system': (Call(os.system, f'touch {canary}'), r'(posix|nt|os)\.system'),
        'eval': (Call(eval, touch), 'eval'),
        'exec': (Call(exec, touch), 'exec'),
        'path': (Call(Path.touch, canary), '(pathlib|getattr)'),
        'getattr': (Call(getattr, HistoryBuffer, '__init__'), 'getattr'),
        'getattr of os': (Call(getattr, os, 'system'), '(posix|nt|os|builtins)'),
        'numpy objects': (np.array([Call(eval, touch)], dtype=object), 'numpy.dtype|eval'),
        'numpy struct': (np.zeros(1, dtype=[('pointer', 'O')]), 'numpy.dtype'),
        'class': (torch.nn.Linear(1, 1), r'torch\.nn\.modules\.linear\.Linear'),
    }


ATTACKS = [name for name in attacks(Path()) if name != 'getattr of os']  # modules cannot be pickled


@pytest.mark.parametrize(
    'load', [load_checkpoint_file, CheckpointLoader.load_checkpoint], ids=['file', 'mmengine']
)
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', ATTACKS)
def test_files_that_call_other_functions_are_refused(
    tmp_path: Path, way: None, name: str, zipped: bool, load: Any
) -> None:
    content, named = attacks(tmp_path / 'canary')[name]
    path = tmp_path / 'attack.pth'
    torch.save({'state_dict': {}, 'x': content}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf'attack\.pth: refused, for it asks for \S*({named})'):
        load(str(path))
    assert not (tmp_path / 'canary').exists()


MEAN = b'cbuiltins\ngetattr\n(cmmengine.logging.history_buffer\nHistoryBuffer\nX\x04\x00\x00\x00meantR'
HANDMADE = {
    # fill the class Counter, not an instance, with (None, {'mean': 1}), which sets an attribute of it
    'class changed': (b'ccollections\nCounter\n(N}X\x04\x00\x00\x00meanK\x01stb.', 'refused|Can only build'),
    # getattr(HistoryBuffer, 'mean')(1): call what a call returned
    'result called': (MEAN + b'(K\x01tR.', 'refused|unrecognized function'),
    # HistoryBuffer.mean.__new__(HistoryBuffer.mean)
    'result instantiated': (MEAN + b')\x81.', 'cannot be loaded'),
    # an instruction that torch.save never writes: Counter()
    'other instruction': (b'(ccollections\nCounter\no.', 'cannot be loaded'),
    # dotted names reach further than the list says
    'dotted name': (b'\x8c\x0bcollections\x8c\x10Counter.__init__\x93.', 'refused|Unsupported operand'),
}


@pytest.mark.parametrize('name', HANDMADE)
@pytest.mark.filterwarnings('ignore:Detected pickle protocol 4')
def test_handmade_pickles_are_refused(tmp_path: Path, way: None, name: str) -> None:
    content, message = HANDMADE[name]
    torch.save({}, tmp_path / 'empty.pth')
    replace_pickle(tmp_path / 'empty.pth', tmp_path / 'made.pth', lambda _: b'\x80\x04' + content)
    with pytest.raises(CheckpointError, match=rf'made\.pth: .*({message})'):
        load_checkpoint_file(tmp_path / 'made.pth')
    assert not hasattr(Counter, 'mean')


# Damage


def test_missing_file(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / 'none.pth', 'there is no such file'), (tmp_path, 'is a folder')):
        with pytest.raises(CheckpointError, match=f'{path}: {reason}'):
            CheckpointLoader.load_checkpoint(str(path))


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_empty_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f'empty.{suffix}'
    path.touch()
    with pytest.raises(CheckpointError, match=f'{path}: the file is empty. Probably'):
        load_checkpoint_file(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('share', [0.01, 0.3, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path: Path, way: None, share: float, zipped: bool) -> None:
    path = tmp_path / 'cut.pth'
    torch.save({'state_dict': {'weight': torch.randn(100, 100)}}, path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r'cut\.pth: .*cut short: take an earlier one'):
        load_checkpoint_file(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (
            b'version https://git-lfs.github.com/spec/v1\n',
            "is a text file, not a checkpoint: 'version https://git-lfs",
        ),
        (b'<!DOCTYPE html>\n<html>404</html>', 'is an HTML file, not a checkpoint: .* download page'),
        (b'\0' * 99, 'cannot be loaded'),
    ],
)
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_other_files(tmp_path: Path, way: None, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f'other.{suffix}'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'{path}: {message}'):
        load_checkpoint_file(path)


def write_weights(path: Path) -> None:
    torch.save({'weight': torch.arange(1000.0), 'bias': torch.ones(1)}, path)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    write_weights(tmp_path / 'whole.pth')
    content = bytearray((tmp_path / 'whole.pth').read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 1000] ^= 1
    (tmp_path / 'flipped.pth').write_bytes(content)
    with pytest.raises(CheckpointError, match=r'flipped\.pth: \w+/data/0 is damaged. Probably its writing'):
        load_checkpoint_file(tmp_path / 'flipped.pth')


@pytest.mark.skipif(not hasattr(torch.serialization, 'set_crc32_options'), reason='needs PyTorch 2.6')
def test_a_file_without_checksums_is_loaded(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        write_weights(tmp_path / 'plain.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_checkpoint_file(tmp_path / 'plain.pth')['weight'], torch.arange(1000.0))


@pytest.mark.parametrize('kind', ['compressed', 'shared', 'same name', 'same name in capitals'])
@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_archives_that_unpack_to_more_than_they_hold_are_refused(tmp_path: Path, kind: str) -> None:
    write_weights(tmp_path / 'whole.pth')
    method = zipfile.ZIP_DEFLATED if kind == 'compressed' else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / 'whole.pth') as old, zipfile.ZipFile(tmp_path / 'bomb.pth', 'w') as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record), method)
            if kind.startswith('same name') and record.filename.endswith('data.pkl'):
                new.writestr(record.filename.upper() if 'capitals' in kind else record.filename, b'N.')
        if kind == 'shared':  # twice in the list, once in the file
            new.filelist += [record for record in new.filelist if record.file_size == 4000]
    with pytest.raises(CheckpointError, match=r'bomb\.pth: refused, for its records are compressed or share'):
        load_checkpoint_file(tmp_path / 'bomb.pth')


def test_torchscript_is_refused(tmp_path: Path, way: None) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / 'script.pth')
    with pytest.raises(CheckpointError, match=r'script\.pth: is TorchScript'):
        load_checkpoint_file(tmp_path / 'script.pth')


def test_a_failed_load_leaves_pytorch_as_it_was(tmp_path: Path, way: None) -> None:
    before = torch.serialization._weights_only_unpickler
    test_other_files(tmp_path, None, b'\0', 'cannot be loaded', 'pth')
    assert torch.serialization._weights_only_unpickler is before
    torch.save({'x': HistoryBuffer([1], [1])}, tmp_path / 'log.pth')
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(tmp_path / 'log.pth', weights_only=True)


# Other places and formats


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip('safetensors.torch')
    path = tmp_path / 'weights.safetensors'
    safetensors.save_file({'backbone.weight': torch.eye(3)}, path)
    assert torch.equal(load_checkpoint_file(path)['backbone.weight'], torch.eye(3))
    assert _load_checkpoint_with_prefix('backbone', str(path), map_location='cpu')['weight'].shape == (3, 3)
    assert load_checkpoint_file(path, map_location='meta')['backbone.weight'].is_meta
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r'weights\.safetensors: cannot be loaded'):
        load_checkpoint_file(path)


def test_a_tilde_is_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    write_weights(tmp_path / 'x.pth')
    assert set(load_checkpoint_file('~/x.pth')) == {'weight', 'bias'}


@pytest.mark.parametrize(
    'address', ['s3://bucket/x.pth', 'petrel://bucket/x.pth', 'cluster:s3://bucket/x.pth']
)
def test_files_in_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Read as safely as those on a disk."""
    store: dict[str, bytes] = {}
    backends = {'petrel': SimpleNamespace(get=store.__getitem__)}
    monkeypatch.setattr(
        checkpoint_sources, 'get_file_backend', lambda name, backend_args: backends[backend_args['backend']]
    )
    write_weights(tmp_path / 'x.pth')
    store[address] = (tmp_path / 'x.pth').read_bytes()
    assert set(CheckpointLoader.load_checkpoint(address)) == {'weight', 'bias'}
    torch.save(Call(os.getpid), tmp_path / 'code.pth')
    store[address] = (tmp_path / 'code.pth').read_bytes()
    with pytest.raises(CheckpointError, match=r'x\.pth: refused'):
        CheckpointLoader.load_checkpoint(address)


def test_map_location(tmp_path: Path, way: None) -> None:
    torch.save(torch.ones(2), tmp_path / 'x.pth')
    assert load_checkpoint_file(tmp_path / 'x.pth', map_location='meta').is_meta


@pytest.mark.parametrize(
    'address',
    [
        'https://example.com/some/model.pth?download=1',
        'torchvision://resnet50',
        'open-mmlab://detectron2/resnet50_caffe',
        'openmmlab://resnet50_caffe',  # an old name
        'mmcls://resnet50',
    ],
)
def test_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: None, address: str) -> None:
    urls = []

    def download(url: str, target: str) -> None:
        urls.append(url)
        torch.save({'backbone.weight': torch.eye(3)}, target)

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    key = 'state_dict' if address.startswith('mmcls') else 'backbone.weight'
    assert all(key in CheckpointLoader.load_checkpoint(address, map_location='cpu') for _ in range(2))
    assert len(urls) == 1 and urls[0].startswith('http')  # once
    (downloaded,) = (tmp_path / 'checkpoints').iterdir()
    assert downloaded.name in urls[0] and downloaded.suffix == '.pth'


@pytest.mark.parametrize(
    ('rank', 'shared', 'expected'),
    [
        (0, False, ['download', 'barrier']),
        (1, False, ['barrier', 'download']),
        (1, True, ['barrier']),
    ],
)
def test_the_first_process_downloads_and_others_only_what_they_do_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, shared: bool, expected: list[str]
) -> None:
    steps = []

    def download(url: str, target: str) -> None:
        steps.append('download')
        write_weights(Path(target))

    def barrier() -> None:
        steps.append('barrier')
        if shared:  # what the first process has done by now
            (tmp_path / 'checkpoints').mkdir()
            write_weights(tmp_path / 'checkpoints/x.pth')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    monkeypatch.setattr(checkpoint_sources, 'get_dist_info', lambda: (rank, 2))
    monkeypatch.setattr(checkpoint_sources, 'barrier', barrier)
    assert set(CheckpointLoader.load_checkpoint('https://example.com/x.pth')) == {'weight', 'bias'}
    assert steps == expected


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, target: str) -> None:
        raise OSError('no route to host')

    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', download)
    with pytest.raises(
        CheckpointError, match=r'example\.com/x\.pth: cannot be downloaded \(no route to host\)'
    ):
        CheckpointLoader.load_checkpoint('http://example.com/x.pth')
    with pytest.raises(CheckpointError, match="MMEngine knows no model 'resnet5'"):
        CheckpointLoader.load_checkpoint('torchvision://resnet5')


def test_dicts_of_a_config_load_as_plain_dicts(tmp_path: Path) -> None:
    meta = {'dataset_meta': ConfigDict(classes=('a', 'b'), more=ConfigDict(split='val'))}
    torch.save({'meta': meta}, tmp_path / 'own.pth')
    loaded = load_checkpoint_file(tmp_path / 'own.pth')['meta']['dataset_meta']
    assert loaded == {'classes': ('a', 'b'), 'more': {'split': 'val'}}
    assert type(loaded['more']) is dict


def test_pavi_is_refused() -> None:
    with pytest.raises(CheckpointError, match='PAVI'):
        CheckpointLoader.load_checkpoint('pavi://model')
