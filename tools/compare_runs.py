"""Runs beside each other: python tools/compare_runs.py work_dirs/one work_dirs/other --plot runs.png"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmhcg.runs import UserError, cli
from mmhcg.runs.places import check_picture, check_table


def compare_runs(work_dirs: list[Path], plot: Path | None, csv: Path | None) -> None:
    """Print the table; write it, and the curves, where they are wanted."""
    from mmhcg.analysis import curves

    check_picture('--plot', plot)
    points = plot.with_suffix('.csv') if plot else None
    if points and csv and points.resolve() == csv.resolve():
        raise UserError(f"--plot {plot} writes the curves' points to {csv}: give --csv another name")
    check_table('the points of --plot:', points, curves.POINT)
    check_table('--csv', csv, curves.Run('').row())
    runs = curves.read_runs(work_dirs)
    print(curves.format_table(runs))
    if csv:
        curves.write_table(runs, csv)
    if plot:
        curves.plot(runs, plot)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description='Compare training runs by their logs: loss, AP or top-1 accuracy in percent (best and '
        'last), most memory in MB, time an iteration in ms (median).'
    )
    parser.add_argument(
        'work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='as given to tools/train.py'
    )
    parser.add_argument(
        '--plot', type=Path, metavar='FILE.png', help='draw loss and scores; their points go into FILE.csv'
    )
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write the table')
    cli.run(compare_runs, parser, argv)


if __name__ == '__main__':
    main()
