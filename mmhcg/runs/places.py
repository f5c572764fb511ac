"""Where a run is to write: looked at before the work, so that hours of it are not lost for a wrong name."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

from mmhcg.runs.errors import UserError

STDOUT = '/dev/stdout'  # which may be a file of the shell's
PICTURES = ('.png', '.pdf', '.svg')  # that Matplotlib writes, and nothing else has to be installed for


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
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise UserError(f'{option} {path} is not writable')
    if os.path.isfile(path) or not os.path.exists(path):  # a new one takes its place
        check_folder(option, os.path.dirname(os.path.realpath(path)))


def check_picture(option: str, path: str | Path | None) -> None:
    """Raises UserError where no picture can be written to this file."""
    check_file(option, path)
    if path is not None and Path(path).suffix.lower() not in PICTURES:
        raise UserError(f'{option} {path} must end in {", ".join(PICTURES)}')


def check_table(option: str, path: str | Path | None, columns: Iterable[str]) -> None:
    """Raises UserError where no CSV file can be written to this one, or it is there and no earlier one.

    What has other columns is the user's: it may neither be replaced, nor get rows that do not fit.
    """
    if path is None or str(path) == STDOUT:
        return
    check_file(option, path)
    if Path(path).suffix.lower() in PICTURES:
        raise UserError(f'{option} {path} has the name of a picture: end it in .csv')
    if not os.path.isfile(path):
        return
    with open(path, encoding='utf-8-sig', errors='replace', newline='') as file:
        head = next(csv.reader(file), None)
    if head is not None and head != list(columns):
        told = f'{option} {path} is there and has other columns than {",".join(columns)}'
        raise UserError(f'{told}: name another file, or move it')


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
