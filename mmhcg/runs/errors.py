"""The exceptions that stand for a mistake in what the user gave, or for a run that must not go on."""

from __future__ import annotations

import os
from pathlib import Path


class UserError(Exception):
    """Something the user gave cannot work; the message names what, where and what to do instead.

    The tools print it as `error: ...`, without a traceback, and exit with `exit_code`.
    """

    exit_code = 2


class DivergedError(UserError):
    """Numbers of the model are NaN or infinite; the message says which and for which images.

    To start the run again as it was would end in the same way, which whoever starts it again must be able to
    tell from other ends.
    """

    exit_code = 3


def check_destination(option: str, path: str | Path, is_folder: bool = False) -> None:
    """Raises UserError where no file, or no folder, can be written, before work is done for it."""
    path = Path(path).absolute()
    if path.exists() and path.is_dir() != is_folder:
        raise UserError(f'{option} {path} is {"a folder" if path.is_dir() else "no folder"}: name another')
    there = next(part for part in (path, *path.parents) if part.exists())
    if not there.is_dir() and there != path:
        raise UserError(f'{option} {path}: {there} is no folder')
    if not os.access(there, os.W_OK):
        raise UserError(f'{option} {path}: {there} must not be written to')
