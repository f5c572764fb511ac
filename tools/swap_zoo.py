"""HCGNet into all of MMDetection's configs: python tools/swap_zoo.py --csv benchmarks/results/zoo.csv"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from mmhcg.runs import UserError, cli
from mmhcg.runs.places import check_file


def run(csv: str, jobs: int, build_only: bool) -> None:
    """Go on with the file, and sum up."""
    import torch

    from mmhcg.swap.zoo import OK, run_zoo

    if jobs < 1:
        raise UserError(f'--jobs must be 1 or more, not {jobs}')
    check_file('--csv', csv)
    torch.set_num_threads(1)
    try:
        rows = run_zoo(Path(csv), jobs, steps=not build_only)
    except KeyboardInterrupt:
        raise UserError(
            f'stopped; what was found is in {csv}, and the same command goes on from there'
        ) from None
    sums = Counter(row.status for row in rows)
    print(f'{len(rows)} configs: ' + ', '.join(f'{count} {status}' for status, count in sums.most_common()))
    print(f'swapped detectors that build: {sum(row.built == OK for row in rows)} of {sums["replaceable"]}')
    control = {row.config.split('/')[0] for row in rows if row.control == OK}
    swapped = {row.config.split('/')[0] for row in rows if row.swapped == OK}
    print(f'families whose control runs: {len(control)}; of these run swapped: {len(control & swapped)}')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Put HCGNet into every config that MMDetection ships.')
    parser.add_argument('--csv', required=True, help='file of the results; a second run goes on with it')
    parser.add_argument('--jobs', type=int, default=2, help='configs at a time (default: 2)')
    parser.add_argument('--build-only', action='store_true', help='build the detectors and run none')
    cli.run(run, parser, argv)


if __name__ == '__main__':
    main()
