"""CIFAR in its own binary layout, which holds nothing but numbers: a pickle, its other one, may run code.

    cifar-10-batches-bin/data_batch_{1..5}.bin, test_batch.bin   a record: label, 3072 bytes of image
    cifar-100-binary/train.bin, test.bin                         a record: coarse label, label, image

An image is 32 rows of red, then of green, then of blue.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import BaseDataset

from mmhcg.registry import DATASETS

SIDE = 32
PIXELS = 3 * SIDE * SIDE
FOLDERS = {10: 'cifar-10-batches-bin', 100: 'cifar-100-binary'}
FILES = {
    (10, 'train'): tuple(f'data_batch_{number}.bin' for number in range(1, 6)),
    (10, 'test'): ('test_batch.bin',),
    (100, 'train'): ('train.bin',),
    (100, 'test'): ('test.bin',),
}


def cifar_files(data_root: str | Path, classes: int, split: str) -> list[Path]:
    """The files of a split, 'train' or 'test', of CIFAR-10 or CIFAR-100 (`classes`) below `data_root`.

    Raises:
        FileNotFoundError: One of them is missing.
        ValueError: There is no such split, or a file is empty or not made of whole records.
    """
    if (classes, split) not in FILES:
        raise ValueError(
            f"CIFAR has 10 or 100 classes and the splits 'train', 'test'; not {classes}, {split!r}"
        )
    files = [Path(data_root, FOLDERS[classes], name) for name in FILES[classes, split]]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(
                f"no {file.absolute()}: CIFAR-{classes}'s binary version is a folder {FOLDERS[classes]} with "
                f'{", ".join(FILES[classes, split])}'
            )
        size, record = file.stat().st_size, _record(classes)
        if not size or size % record:
            raise ValueError(
                f'{file.absolute()} has {size} bytes, no whole number of records of {record}: it is cut '
                f'short, or not of the binary version of CIFAR-{classes}'
            )
    return files


def read_cifar(file: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3), RGB, and labels (N,), both uint8.

    Raises:
        ValueError: A label is none of the classes.
    """
    records = np.fromfile(file, np.uint8).reshape(-1, _record(classes))
    labels = records[:, -PIXELS - 1]
    if labels.max() >= classes:
        raise ValueError(
            f'{file}: record {labels.argmax()} has the label {labels.max()}, of {classes} classes from 0'
        )
    return records[:, -PIXELS:].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _record(classes: int) -> int:
    """Bytes of a record: CIFAR-100 has two labels."""
    return PIXELS + (2 if classes == 100 else 1)


@DATASETS.register_module()
class CIFARBinary(BaseDataset):
    """CIFAR-10 or CIFAR-100 in its own binary layout, as mmpretrain's pipelines take images.

    Args:
        data_root: The folder that holds `cifar-10-batches-bin` or `cifar-100-binary`.
        split: 'train' or 'test'.
        classes: 10 or 100.
        kwargs: Those of MMEngine's BaseDataset.

    Raises: as `cifar_files` and `read_cifar`.
    """

    def __init__(self, data_root: str, split: str, classes: int = 10, **kwargs: Any) -> None:
        self.split, self.classes = split, classes
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """An item an image: `img` (32, 32, 3), RGB, and `gt_label`."""
        return [
            dict(img=np.ascontiguousarray(image), gt_label=int(label), img_shape=(SIDE, SIDE))
            for file in cifar_files(self.data_root, self.classes, self.split)
            for image, label in zip(*read_cifar(file, self.classes))
        ]


def make_cifar(source: str | Path, out: str | Path) -> Path:
    """Write CIFAR-10's binary layout from a file .npz that holds it as JPEG files; returns its folder.

    The file has, for `train` and `test`, `*_jpeg` (N JPEG files, one after another), `*_offsets` (N + 1) and
    `*_labels` (N). JPEG is lossy, hence so is what is written.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: The folder is there already.
        ValueError: The file is no whole .npz, lacks an array, its arrays do not fit each other, or an image
            is not of 32 x 32 pixels.
    """
    folder, source = Path(out, FOLDERS[10]), Path(source).absolute()
    if folder.exists():
        raise FileExistsError(f'{folder.absolute()} is there already: name another folder')
    if not source.is_file():
        raise FileNotFoundError(f'no file {source}')
    if not zipfile.is_zipfile(source):
        raise ValueError(f'{source} is no .npz file, or is cut short')
    with np.load(source, allow_pickle=False) as arrays:
        wanted = [f'{split}_{name}' for split in ('train', 'test') for name in ('jpeg', 'offsets', 'labels')]
        if lacking := [name for name in wanted if name not in arrays]:
            raise ValueError(f'{source} has no {", ".join(lacking)}')
        try:
            splits = {split: _records(source, split, arrays) for split in ('train', 'test')}
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f'{source} is damaged: {error}') from error
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f'.{folder.name}-', dir=folder.parent) as temporary:
        making = Path(temporary, folder.name)  # there is a whole folder or none
        making.mkdir()
        for split, records in splits.items():
            files = FILES[10, split]
            for name, part in zip(files, np.array_split(records, len(files))):
                part.tofile(making / name)
        making.rename(folder)
    return folder


def _records(source: Path, split: str, arrays: Any) -> np.ndarray:
    """Label and image (N, 3073) of JPEG files."""
    jpeg, offsets, labels = (arrays[f'{split}_{name}'] for name in ('jpeg', 'offsets', 'labels'))
    sizes = np.diff(offsets.astype(np.int64), prepend=0)  # the first of them is the first offset
    if len(sizes) != len(labels) + 1 or sizes[0] or (sizes[1:] < 1).any() or sizes.sum() != len(jpeg):
        raise ValueError(
            f'{source}: {split}_offsets are not the bounds of {len(labels)} files in {split}_jpeg'
        )
    if not np.isin(labels, range(10)).all():
        raise ValueError(f'{source}: {split}_labels must be from 0 to 9')
    records = np.empty((len(labels), _record(10)), np.uint8)
    records[:, 0] = labels
    for number, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:])):
        image = cv2.imdecode(jpeg[start:stop], cv2.IMREAD_COLOR)
        if image is None or image.shape != (SIDE, SIDE, 3):
            raise ValueError(f'{source}: image {number} of {split} is no picture of {SIDE} x {SIDE} pixels')
        records[number, 1:] = image[..., ::-1].transpose(2, 0, 1).ravel()  # BGR -> planes of R, G, B
    return records
