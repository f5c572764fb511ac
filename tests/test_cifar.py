"""CIFAR's binary layout: read byte for byte, refused where it is not what it should be, made from JPEG."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from cifar_files import NAMES, write_cifar
from tiny_run import load_tool

from mmhcg.data.cifar import CIFARBinary, cifar_files, read_cifar


@pytest.mark.parametrize('classes', [10, 100])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_images_and_labels_are_those_of_the_files(tmp_path, classes, split):
    written = write_cifar(tmp_path, classes)
    expected = [item for name in NAMES[classes][split == 'test'] for item in written[name]]
    dataset = CIFARBinary(str(tmp_path), split, classes, serialize_data=False)  # it collects garbage for long
    assert len(dataset) == len(expected)
    for index, (image, label) in enumerate(expected):
        item = dataset[index]
        assert np.array_equal(item['img'], image) and item['gt_label'] == label
    assert len(CIFARBinary(str(tmp_path), split, classes, indices=1)) == 1


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        (
            'test_batch.bin',
            None,
            r"no \S+test_batch\.bin: CIFAR-10's binary version is a folder cifar-10-bat",
        ),
        ('test_batch.bin', b'', 'has 0 bytes, no whole number of records of 3073'),
        ('test_batch.bin', bytes(3074), 'has 3074 bytes, no whole number of records of 3073'),
        ('test_batch.bin', bytes(3073) + b'\x0a' + bytes(3072), r'record 1 has the label 10, of 10 classes'),
    ],
)
def test_files_that_are_not_cifars_are_named(tmp_path, name, content, message):
    write_cifar(tmp_path, 10)
    file = tmp_path / 'cifar-10-batches-bin' / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        CIFARBinary(str(tmp_path), 'test', 10)
    assert len(CIFARBinary(str(tmp_path), 'train', 10)) == 10


def test_there_is_no_other_cifar(tmp_path):
    for classes, split in ((20, 'train'), (10, 'val')):
        with pytest.raises(ValueError, match='10 or 100 classes'):
            cifar_files(tmp_path, classes, split)


def write_npz(path, images, side=32):
    random, arrays = np.random.default_rng(0), {}
    for split, count in images.items():
        smooth = cv2.resize(random.integers(0, 256, (count * 4, 4, 3), np.uint8), (side, count * side))
        files = [cv2.imencode('.jpg', image)[1].ravel() for image in smooth.reshape(count, side, side, 3)]
        arrays[f'{split}_jpeg'] = np.concatenate(files)
        arrays[f'{split}_offsets'] = np.cumsum([0, *map(len, files)])
        arrays[f'{split}_labels'] = np.arange(count, dtype=np.uint8)
    np.savez(path, **arrays)
    return arrays


def test_the_tool_writes_the_pictures_of_an_npz(tmp_path, capsys):
    arrays = write_npz(tmp_path / 'jpeg.npz', {'train': 10, 'test': 3})
    load_tool('make_cifar').main([str(tmp_path / 'jpeg.npz'), str(tmp_path / 'out')])
    assert 'cifar-10-batches-bin: made' in capsys.readouterr().out
    for split, count in (('train', 10), ('test', 3)):
        dataset = CIFARBinary(str(tmp_path / 'out'), split)
        assert [dataset[index]['gt_label'] for index in range(len(dataset))] == list(range(count))
        start, stop = arrays[f'{split}_offsets'][1:3]
        picture = cv2.imdecode(arrays[f'{split}_jpeg'][start:stop], 1)[..., ::-1]
        assert np.array_equal(dataset[1]['img'], picture)
    assert [len(read_cifar(file, 10)[1]) for file in cifar_files(tmp_path / 'out', 10, 'train')] == [2] * 5


def test_the_tool_overwrites_nothing_and_names_what_is_wrong(tmp_path, capsys):
    write_npz(tmp_path / 'jpeg.npz', {'train': 5, 'test': 1})
    write_npz(tmp_path / 'large.npz', {'train': 5, 'test': 1}, side=33)
    np.savez(tmp_path / 'other.npz', x=np.zeros(3))
    whole = (tmp_path / 'jpeg.npz').read_bytes()
    (tmp_path / 'cut.npz').write_bytes(whole[:-100])
    (tmp_path / 'flipped.npz').write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    for name, array in (('test_offsets', [0, 9]), ('test_labels', [10]), ('test_jpeg', [255] * 9)):
        np.savez(tmp_path / f'{name}.npz', **dict(np.load(tmp_path / 'jpeg.npz'), **{name: array}))
    main = load_tool('make_cifar').main
    (tmp_path / 'out/cifar-10-batches-bin').mkdir(parents=True)
    for source, out, message in (
        ('jpeg', 'out', 'out/cifar-10-batches-bin is there already: name another folder'),
        ('large', 'new', 'image 0 of train is no picture of 32 x 32 pixels'),
        ('other', 'new', 'other.npz has no train_jpeg'),
        ('none', 'new', f'no file {tmp_path}/none.npz'),
        ('cut', 'new', 'cut.npz is no .npz file, or is cut short'),
        ('flipped', 'new', 'flipped.npz is damaged: '),
        ('test_offsets', 'new', 'test_offsets are not the bounds of 1 files in test_jpeg'),
        ('test_jpeg', 'new', 'test_offsets are not the bounds of 1 files in test_jpeg'),
        ('test_labels', 'new', 'test_labels must be from 0 to 9'),
    ):
        with pytest.raises(SystemExit, match='2'):
            main([str(tmp_path / f'{source}.npz'), str(tmp_path / out)])
        (told,) = capsys.readouterr().err.splitlines()
        assert told.startswith('error: ') and message in told
    assert not (tmp_path / 'new').exists()
