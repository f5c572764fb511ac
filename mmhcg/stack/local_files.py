"""Files that are whole or not there: MMEngine's backend for the disk writes into the old file."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Union

from mmengine.fileio import FileClient, LocalBackend, register_backend

UNFINISHED = '.unfinished'  # how the names of files end that whoever wrote them could not finish


class AtomicLocalBackend(LocalBackend):
    """LocalBackend that gives a file its name once the disk has all of it.

    Whoever is killed, at whatever moment, leaves the old file or the new one under that name.
    """

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        """Write `obj`; raises OSError with the space left on the disk, and leaves the old file as it was."""
        path = os.path.realpath(filepath)  # a link stays one
        if os.path.exists(path) and not os.path.isfile(path):  # /dev/stdout and its kin
            return super().put(obj, filepath)
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        unfinished = f'{path}.{os.getpid()}{UNFINISHED}'
        try:
            with open(unfinished, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
            _sync_folder(folder)
        except OSError as error:
            free = shutil.disk_usage(folder).free
            reason = f'{error.strerror}; {len(obj) / 1e6:,.1f} MB to write, {free / 1e6:,.1f} MB free there'
            raise OSError(error.errno, reason, path) from error
        finally:
            with suppress(FileNotFoundError):
                os.unlink(unfinished)

    def put_text(self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8') -> None:
        """As `put`."""
        self.put(obj.encode(encoding), filepath)


def _sync_folder(path: str) -> None:
    """Let the disk have the file's name, too, where the system can be asked for it."""
    if os.name != 'posix':
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # of file systems that know no such thing
            os.fsync(folder)
    finally:
        os.close(folder)


def register_atomic_files() -> None:
    """Let MMEngine write all of its files in this way, checkpoints among them."""
    register_backend('local', AtomicLocalBackend, force=True, prefixes='')
    FileClient.register_backend('disk', AtomicLocalBackend, force=True)
