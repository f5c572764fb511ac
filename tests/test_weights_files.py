"""Files that hold weights: hostile, torn or odd ones are refused, and writing loses nothing."""

import errno
import os
import pickle
import zipfile

import pytest
import torch
from authors_files import classification_file
from compare import equal

from mmhcg import HCGNet
from mmhcg.stack.checkpoints import CheckpointError, load_checkpoint_file
from mmhcg.weights import WeightsError, check_new, convert_checkpoint, save_weights
from mmhcg.weights.entries import FULL, form_fault, tensors_of
from mmhcg.weights.fit import check_fit


@pytest.mark.parametrize(
    'odd',
    [torch.ones(1244).to(torch.float8_e4m3fn), torch.nested.nested_tensor([torch.ones(1244)])],
    ids=['float8', 'nested'],
)
def test_odd_tensors_are_refused(tmp_path, odd):
    try:
        torch.save({'net': {**classification_file(), 'features.norm5.weight': odd}}, tmp_path / 'odd.pth')
    except (KeyError, RuntimeError):
        pytest.skip('this PyTorch cannot save it')
    with pytest.raises((CheckpointError, WeightsError), match=r'odd\.pth'):
        convert_checkpoint(tmp_path / 'odd.pth')


def test_each_tensor_is_found_once_with_its_path_in_whatever_holds_it():
    shared = torch.ones(1)
    content = {'a': shared, 'b': [shared, {3: torch.zeros(1)}], 'c': (shared, torch.ones(2), 'x')}
    content['b'].append(content)
    assert [path for path, _ in tensors_of(content)] == ['a', 'b.1.3', 'c.1']
    assert [path for path, _ in tensors_of(shared)] == ['']


class Payload:
    def __reduce__(self):
        return print, ('code of a checkpoint was run',)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_with_code_is_refused_and_not_run(tmp_path, capsys, zipped):
    content = {'net': classification_file(), 'optimizer': Payload()}
    torch.save(content, tmp_path / 'a.pth.tar', _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'refused, for it asks for (\w+\.)?print'):
        convert_checkpoint(tmp_path / 'a.pth.tar')
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize('protocol', [2, 4, 5])
def test_a_bare_pickle_is_refused(tmp_path, protocol):
    (tmp_path / 'pickle.pth').write_bytes(pickle.dumps(Payload(), protocol))
    with pytest.raises(CheckpointError, match=r'pickle\.pth: refused, for it (asks for|is a pickle)'):
        convert_checkpoint(tmp_path / 'pickle.pth')


def test_a_torn_file_is_refused(tmp_path):
    torch.save({'net': classification_file()}, tmp_path / 'a.pth.tar')
    content = (tmp_path / 'a.pth.tar').read_bytes()
    (tmp_path / 'torn.pth').write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r'torn\.pth: the end of the file is missing'):
        convert_checkpoint(tmp_path / 'torn.pth')


@pytest.mark.parametrize('claims', [(0,), (1,), (0, 1)], ids=['storage', 'tensor', 'both'])
def test_a_storage_that_claims_more_than_the_file_holds_is_refused(tmp_path, claims):
    weight = torch.arange(4.0)
    torch.save({'features.conv0.weight': weight, 'same': weight[:]}, tmp_path / 'a.pth')
    claimed = (  # four elements -> 2^20, in the storage when it is named first, and in both tensors
        (b'X\x03\x00\x00\x00cpuq\x06K\x04', b'X\x03\x00\x00\x00cpuq\x06J\x00\x00\x10\x00'),
        (b'QK\x00K\x04\x85', b'QK\x00J\x00\x00\x10\x00\x85'),
    )
    with zipfile.ZipFile(tmp_path / 'a.pth') as old, zipfile.ZipFile(tmp_path / 'claim.pth', 'w') as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith('data.pkl'):
                for before, after in map(claimed.__getitem__, claims):
                    assert before in data
                    data = data.replace(before, after)
            new.writestr(info, data)
    with pytest.raises(CheckpointError, match=r'claim\.pth: refused, for it claims more numbers than'):
        convert_checkpoint(tmp_path / 'claim.pth')


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, suffix):
    def fsync(file):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(OSError, match='No space left'):
        save_weights({'a': torch.zeros(1000)}, tmp_path / f'full{suffix}')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_slices_and_shared_tensors_are_written_on_their_own(tmp_path, suffix):
    whole = torch.arange(1e6)
    state = {'slice': whole[:3], 'same': whole[:3], 'transposed': whole[:6].view(2, 3).T}
    save_weights(state, tmp_path / f'small{suffix}')
    assert (tmp_path / f'small{suffix}').stat().st_size < 10_000
    assert equal(load_checkpoint_file(tmp_path / f'small{suffix}'), state)


def test_a_file_that_comes_to_be_there_is_kept(tmp_path, monkeypatch):
    """On a file system without hard links, too."""

    def link(src, dst):
        (tmp_path / 'w.pth').write_text('other')
        raise OSError(errno.EPERM, 'Operation not permitted')

    monkeypatch.setattr(os, 'link', link)
    with pytest.raises(FileExistsError, match='is there already'):
        save_weights({'a': torch.zeros(1)}, tmp_path / 'w.pth')
    assert [path.read_text() for path in tmp_path.iterdir()] == ['other']
    monkeypatch.setattr(os, 'link', lambda src, dst: os.rename(src, tmp_path / 'nowhere' / 'x'))
    save_weights({'a': torch.zeros(1)}, tmp_path / 'new.pth')
    assert equal(load_checkpoint_file(tmp_path / 'new.pth'), {'a': torch.zeros(1)})


def test_what_cannot_be_written_is_named_before_the_work(tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'link.pth').symlink_to('nowhere.pth')
    with pytest.raises(NotADirectoryError, match=r'x\.pth cannot be written, for \S*/file is no folder'):
        check_new(tmp_path / 'file' / 'deep' / 'x.pth')
    with pytest.raises(FileExistsError, match=r'link\.pth is there already'):
        check_new(tmp_path / 'link.pth')
    check_new(tmp_path / 'new' / 'deep' / 'x.pth')


def test_counters_are_not_needed_and_wrappers_make_no_difference():
    model = HCGNet(dict(blocks=(1,), growth_rates=(8,)), out_indices=(0,))
    state = model.state_dict()
    older = {name: tensor for name, tensor in state.items() if not name.endswith('num_batches_tracked')}
    assert len(older) < len(state)
    check_fit('older.pth', older, model)
    for content in (state, {f'module.{name}': tensor for name, tensor in state.items()}):
        check_fit('w.pth', content, torch.nn.DataParallel(model))
    with pytest.raises(CheckpointError, match=r'stem\.0\.conv\.weight is missing'):
        check_fit('w.pth', dict(list(state.items())[1:]), torch.nn.DataParallel(model))


@pytest.mark.filterwarnings('ignore')  # what becomes of quantised types in PyTorch
def test_quantised_tensors_are_of_another_type():
    odd = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
    assert form_fault(odd, FULL) == 'is of type torch.quint8 instead of torch.float32 or torch.float64'


def test_what_a_tensor_claims_is_what_it_stores_or_more_of_it():
    assert form_fault(torch.zeros(1).expand(2), FULL) == 'claims 2 elements and stores 1'
    assert form_fault(torch.zeros(2, 3).expand(2, 2, 3), FULL) == 'claims 12 elements and stores 6'
    for whole in (
        torch.zeros(2, 3),
        torch.zeros(3, 2).T,
        torch.zeros(4, 4)[:, :2],
        torch.zeros(0, 5),
        torch.zeros(()),
    ):
        assert form_fault(whole, FULL) is None
