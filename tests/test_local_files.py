"""MMEngine's ways to a file on the disk, both of which write it whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from mmengine.fileio import FileClient, get_file_backend

import mmhcg  # noqa: F401  registers the backend
from mmhcg.stack.local_files import AtomicLocalBackend

WAYS = {  # of MMEngine to a file: today's, and two of yesterday's
    'get_file_backend': get_file_backend,
    'FileClient': lambda path: FileClient('disk').client,
    'infer_client': lambda path: FileClient.infer_client(uri=path).client,
}


@pytest.fixture(params=WAYS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    backend = WAYS[request.param](tmp_path / 'x.pth')
    assert type(backend) is AtomicLocalBackend
    return backend


def test_bytes_and_text_are_written_into_folders_that_are_made(tmp_path, backend):
    path = tmp_path / 'new/x'
    for content in (b'long ago', b'new'):
        backend.put(content, path)
        assert path.read_bytes() == content
    backend.put_text('naïve', path)
    assert path.read_bytes() == b'na\xc3\xafve'
    backend.put_text('naïve', path, encoding='latin-1')
    assert path.read_bytes() == b'na\xefve'
    assert [file.name for file in path.parent.iterdir()] == ['x']


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch, backend):
    path = tmp_path / 'x'
    path.write_bytes(b'old')

    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(OSError, match=r'No space left on device; 2\.0 MB to write, [\d,.]+ MB free') as error:
        backend.put(bytes(2_000_000), path)
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one_and_its_file_is_written(tmp_path, backend):
    link, path = tmp_path / 'link', tmp_path / 'there/x'
    path.parent.mkdir()
    link.symlink_to(path)
    for content in (b'made', b'replaced'):
        backend.put(content, link)
        assert link.readlink() == path and path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_a_pipe_is_written_to_and_stays_one(tmp_path, backend):
    """As is /dev/stdout where it is no file."""
    path = tmp_path / 'pipe'
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        backend.put(b'content', path)
        assert os.read(reader, 99) == b'content'
    finally:
        os.close(reader)
    assert path.is_fifo()
