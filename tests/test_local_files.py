"""MMEngine's ways to a file on the disk, both of which write it whole or not at all."""

from __future__ import annotations

from mmengine.fileio import FileClient, get_file_backend

import mmhcg  # noqa: F401  registers the backend
from mmhcg.stack.local_files import AtomicLocalBackend


def test_today_and_yesterdays_interface_write_whole_files(tmp_path):
    path = tmp_path / 'x.pth'
    clients = [FileClient('disk').client, FileClient.infer_client(uri=path).client]
    for backend in [get_file_backend(path), *clients]:
        assert type(backend) is AtomicLocalBackend
