"""Write the pages of results from benchmarks/results and the configs: python benchmarks/results_page.py

`--check` writes nothing and fails where a page is out of date. `--count` counts every config's parameters and
multiply-adds anew first, which takes a minute or two.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from metafile import metafile
from records import COMPLEXITY, CONFIGS, ROOT, SWAPPED, SWAPS, count, count_swapped, names
from tables import TABLES

from mmhcg.analysis.tables import write_rows

MARKS = re.compile(r'(<!-- begin: (\w+) .*?-->\n).*?(<!-- end: \2 -->)', re.S)


def pages() -> dict[Path, str]:
    """What each file should hold; in text, what stands between two marks of a table."""
    filled = {
        path: MARKS.sub(lambda mark: mark[1] + TABLES[mark[2]]() + mark[3], path.read_text(encoding='utf-8'))
        for path in (ROOT / 'README.md', CONFIGS / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
    }
    return {**filled, CONFIGS / 'metafile.yml': metafile()}


def main(argv: list[str] | None = None) -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description='Write the pages of results.')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail where a page is out of date'
    )
    parser.add_argument('--count', action='store_true', help='count parameters and multiply-adds anew first')
    options = parser.parse_args(argv)
    if options.count:
        write_rows([count(name) for name in names()], COMPLEXITY)
        write_rows([count_swapped(name) for name in SWAPPED], SWAPS)
    for path, text in pages().items():
        old = path.read_text(encoding='utf-8') if path.exists() else None
        if options.check and old != text:
            sys.exit(f'{path.relative_to(ROOT)} is out of date: python benchmarks/results_page.py')
        if not options.check:
            path.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
