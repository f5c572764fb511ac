"""Tables as CSV files and as text, names and machines for their rows, and samples of long lists."""

from __future__ import annotations

import csv
import io
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmhcg.runs.places import STDOUT, check_table


def write_rows(rows: Sequence[Any], path: Path, columns: Sequence[str] = (), add: bool = False) -> None:
    """Write rows, mappings or all of one dataclass, to a CSV file.

    A file is replaced at once, so that a program that is stopped leaves a whole one.

    Args:
        rows: Lines of the table.
        path: The file; what is no file, such as /dev/stdout, is written to.
        columns: Its columns, where there may be no row.
        add: Replace nothing, but add the rows to those of the file, if there is one. UserError where it has
            other columns, which `check_table` tells before the work.
    """
    lines = [row if isinstance(row, Mapping) else asdict(row) for row in rows]
    columns = columns or list(lines[0])
    if add:
        check_table('the file', path, columns)
    old = path.read_bytes() if add and path.is_file() and str(path) != STDOUT else b''
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    if not old:
        writer.writeheader()
    elif not old.endswith(b'\n'):
        text.write('\n')
    writer.writerows(lines)
    if str(path) == STDOUT:
        sys.stdout.write(text.getvalue())
    elif old or (path.exists() and not path.is_file()):
        with path.open('ab') as file:
            file.write(text.getvalue().encode())
    else:
        path = Path(os.path.realpath(path))  # a link stays one
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f'.{path.name}.new')
        new.write_bytes(text.getvalue().encode())
        new.replace(path)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by the titles of its columns."""
    with path.open(newline='', encoding='utf-8-sig') as file:
        return list(csv.DictReader(file))


def align(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of even columns, the first one flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join(
        '  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def distinct(names: Sequence[str], longer: Sequence[str]) -> list[str]:
    """Names, and for those of several the longer ones."""
    return [more if names.count(name) > 1 else name for name, more in zip(names, longer)]


def spread_over(total: int, limit: int) -> list[int]:
    """At most `limit` of the numbers below `total`, evenly spread."""
    count = min(limit, total)
    return [number * total // count for number in range(count)]


def software() -> str:
    """The versions that measurements depend on."""
    return f'PyTorch {torch.__version__} Python {platform.python_version()}'


def machine(device: torch.device) -> str:
    """The GPU's name, or the processor's and how many of its cores are used."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        name = next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f'{torch.get_num_threads()} cores of {name}'
