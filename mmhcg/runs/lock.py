"""One training run to a work dir: a second would write over the first one's checkpoints."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mmengine.logging import print_log

from mmhcg.runs.errors import UserError
from mmhcg.runs.processes import is_first

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps a second run out
    fcntl = None  # type: ignore[assignment]

NAME = '.run.lock'
_ours: set[str] = set()


@contextmanager
def sole_run(work_dir: str, launcher: str = 'none') -> Iterator[None]:
    """Within it, no other process trains in this work dir; a second time in the same process changes nothing.

    Of several processes, the first holds the lock for all. The kernel frees it when the process ends in
    whatever way.

    Raises:
        UserError: another run has the work dir.
    """
    path = os.path.join(os.path.realpath(work_dir), NAME)
    if fcntl is None or not is_first(launcher) or path in _ours:
        yield
        return
    os.makedirs(work_dir, exist_ok=True)
    with open(path, 'a+') as file:
        _lock(file, work_dir)
        _ours.add(path)
        try:
            yield
        finally:
            _ours.remove(path)


def _lock(file: IO[str], work_dir: str) -> None:
    try:
        # Not flock: workers inherit that, and would hold it for seconds after their parent was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        raise UserError(
            f'another run trains in {os.path.abspath(work_dir)} ({file.read().strip()}), and its checkpoints '
            'would be overwritten. Name another folder by --work-dir, or end that run first'
        ) from error
    except OSError as error:
        print_log(
            f'cannot lock {work_dir}: a second run there would not be detected ({error})', 'current', 30
        )
        return
    file.truncate(0)
    file.write(
        f'process {os.getpid()} on {socket.gethostname()}, since {time.strftime("%Y-%m-%d %H:%M:%S")}\n'
    )
    file.flush()
