"""What a network's units see: python tools/dissect.py CONFIG CHECKPOINT --ann COCO.json --images DIR"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from mmhcg.runs import UserError, cli
from mmhcg.runs.places import check_folder


def run(
    config: str,
    checkpoint: str,
    against: list[str] | None,
    ann: str,
    images: str,
    stage: int,
    side: int | None,
    limit: int | None,
    out: Path,
) -> None:
    """Dissect one network or two; write all units, bars, and a page for each."""
    for name, number in (('--limit', limit), ('--side', side)):
        if number is not None and number < 1:
            raise UserError(f'{name} must be positive, not {number}')
    check_folder('--out', out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f'{out.resolve()} is there already: name another folder by --out')
    from mmhcg.analysis import dissection_pages as pages  # imports MMDetection
    from mmhcg.analysis.dissection import FEW, Photos, dissect
    from mmhcg.analysis.stage_maps import StageMaps

    photos = Photos(ann, images, limit)
    pairs = [(config, checkpoint), *([(against[0], against[1])] if against else [])]
    networks = [StageMaps(cfg, weights, stage, side) for cfg, weights in pairs]
    if against and len({network.name for network in networks}) < len(networks):
        raise UserError(f'--against {" ".join(against)} has the names of what it is compared with')
    if len(photos) < FEW:
        print(
            f'warning: {len(photos)} photographs say little: the regions of a unit, the 0.5 % of all places '
            f'where it is most active, are less than one photograph where there are less than {FEW}',
            file=sys.stderr,
        )
    out.mkdir(parents=True, exist_ok=True)
    units = []
    for number, network in enumerate(networks, 1):
        found = dissect(network, photos, partial(_bar, network.name))
        pages.draw_page(network, photos, found, out / f'top_units_{number}.png')
        units += found
        pages.save_units(units, out / 'units.csv')
    pages.plot_detectors(units, out / 'detectors.png')
    print(f'{pages.format_table(units)}\n({len(photos)} photographs; units and pictures in {out})')


def _bar(name: str, title: str, numbers: Iterable[int]) -> Iterable[int]:
    from mmengine.utils import track_iter_progress

    print(f'{name}: {title}')
    if not sys.stdout.isatty():  # a bar is drawn over itself
        yield from numbers
        return
    yield from track_iter_progress(list(numbers))
    print()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Network dissection: which channels of a stage light up where COCO's masks of a category "
        'are. A channel is a detector of its best category if the IoU over all photographs is above 0.04.'
    )
    parser.add_argument('config', metavar='CONFIG', help='config file of a detector or a classifier')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help="checkpoint file, or 'none' for random weights"
    )
    parser.add_argument('--ann', required=True, metavar='ANN.json', help="annotations in COCO's format")
    parser.add_argument('--images', required=True, metavar='DIR', help='folder of the photographs')
    parser.add_argument(
        '--stage',
        type=int,
        default=4,
        metavar='N',
        help='of the backbone, from 1 as frozen_stages counts (default: 4)',
    )
    parser.add_argument(
        '--against',
        nargs=2,
        metavar=('CONFIG', 'CHECKPOINT'),
        help='another network beside it, e.g. a ResNet',
    )
    parser.add_argument(
        '--side',
        type=int,
        metavar='PIXELS',
        help='scale photographs to this shorter side (default: as they are)',
    )
    parser.add_argument('--limit', type=int, metavar='N', help='look at N photographs, spread over the file')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('work_dirs/dissect'),
        metavar='DIR',
        help='folder of what is found (default: work_dirs/dissect)',
    )
    cli.run(run, parser, argv)


if __name__ == '__main__':
    main()
