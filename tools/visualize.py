"""What HCGNet does with photographs: python tools/visualize.py CONFIG CHECKPOINT photo.jpg --out pictures"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmhcg.runs import UserError, cli
from mmhcg.runs.places import check_folder


def show(config: str, checkpoint: str, images: list[Path], out: Path, score_thr: float) -> None:
    """Draw, and tell where."""
    if not 0 <= score_thr <= 1:  # NaN neither
        raise UserError(f'--score-thr must be from 0 to 1, not {score_thr}')
    check_folder('--out', out)
    from mmhcg.analysis.visualize import visualize

    folders = visualize(config, checkpoint, images, out, score_thr, cli.progress)
    cli.end_progress()
    for folder in folders:
        print(f'{folder}: {", ".join(sorted(path.name for path in folder.glob("*.png")))}')
    print('The numbers of each picture stand beside it, as CSV.')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Draw a detector's detections, where HCGNet's update gates look, what its forget gates "
        'keep and what its stages see.'
    )
    parser.add_argument('config', metavar='CONFIG', help='config file, of a detector on HCGNet')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help="the detector's weights")
    parser.add_argument('images', nargs='+', type=Path, metavar='IMAGE', help='photographs')
    parser.add_argument('--out', type=Path, required=True, metavar='DIR', help='gets a new folder an image')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='SCORE',
        help='draw detections above this score (default: 0.3)',
    )
    cli.run(show, parser, argv)


if __name__ == '__main__':
    main()
