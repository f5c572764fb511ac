"""Where a run is to write: looked at before the work, so that hours of it are not lost for a wrong name."""

from __future__ import annotations

import os
from pathlib import Path

from mmhcg.runs.errors import UserError


def refuse_empty(option: str, value: object) -> None:
    """Raises UserError for an empty text, as a shell gives it for a variable that is not set."""
    if isinstance(value, (str, os.PathLike)) and not os.fspath(value):
        raise UserError(f'{option} is empty: is a shell variable unset?')


def check_file(option: str, path: str | Path | None) -> None:
    """Raises UserError where this file cannot be written, in folders that are made if need be."""
    if path is None:
        return
    refuse_empty(option, path)
    path = os.path.abspath(path)
    if os.path.isdir(path):
        raise UserError(f'{option} {path} is a folder: name a file')
    if not os.path.exists(path):
        check_folder(option, os.path.dirname(path))
    elif not os.access(path, os.W_OK):
        raise UserError(f'{option} {path} is not writable')


def check_folder(option: str, path: str | Path | None) -> None:
    """Raises UserError where this folder is none, cannot be made or not be written to."""
    if path is None:
        return
    refuse_empty(option, path)
    folder = os.path.abspath(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise UserError(f'{option} {os.path.abspath(path)}: {folder} is not a folder')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'{option} {os.path.abspath(path)}: the folder {folder} is not writable')
