"""Tables as CSV files and as text, names that tell their rows apart, and samples of long lists."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path, columns: Sequence[str] = ()) -> None:
    """Write rows to a new CSV file; `columns` names them where there may be no row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


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
