"""Write README's table from benchmarks/results: python benchmarks/results_table.py [--check]"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = '<!-- begin: results (python benchmarks/results_table.py) -->\n', '<!-- end: results -->'
TITLES = {
    'source': 'source',
    'what': 'what',
    'data': 'data',
    'parameters': 'parameters',
    'multiply_adds': 'multiply-adds',
    'box_ap': 'box AP',
    'mask_ap': 'mask AP',
    'machine': 'machine',
}


def table() -> str:
    """the rows of both files, the paper's first, as a Markdown table."""
    rows = []
    for path in ('paper_coco.csv', 'demo.csv'):
        with (ROOT / 'benchmarks' / 'results' / path).open(newline='', encoding='utf-8') as file:
            rows += [[row.get(column) or '' for column in TITLES] for row in csv.DictReader(file)]
    lines = [list(TITLES.values()), ['---'] * len(TITLES), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def with_table(readme: str) -> str:
    """The text of README with what stands between the two marks replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == '__main__':
    readme = ROOT / 'README.md'
    old = readme.read_text(encoding='utf-8')
    new = with_table(old)
    if '--check' in sys.argv[1:]:
        sys.exit('README.md is out of date: python benchmarks/results_table.py' if new != old else 0)
    readme.write_text(new, encoding='utf-8')
