"""Check annotations and images in COCO's format: python tools/check_data.py ANN.json IMG_DIR"""

from __future__ import annotations

import argparse
import os
import sys

from mmhcg.data.annotations import AnnotationFile
from mmhcg.data.faults import Fault, Tally, Use
from mmhcg.data.images import check_images
from mmhcg.runs import UserError, cli


def run(annotations: str, images: str | None, jobs: int, no_images: bool, no_masks: bool) -> None:
    if not os.path.isfile(annotations):
        raise UserError(f'no annotation file at {os.path.abspath(annotations)}')
    if jobs < 1:
        raise UserError(f'--jobs {jobs}: at least one has to read the images')
    if images is None and not no_images:
        raise UserError('name the folder of the images, or say --no-images')
    if images is not None and not os.path.isdir(images):
        raise UserError(f'no folder {images}')
    file, tally = AnnotationFile(annotations, Use.BOXES_ONLY if no_masks else Use.ALL), Tally()
    for fault in file.faults():
        _tell(fault, tally)
    if file.images and images is not None and not no_images:
        from mmengine.utils import ProgressBar

        faults = []
        bar = ProgressBar(len(file.images), file=sys.stderr) if sys.stderr.isatty() else None
        for found in check_images(file, images, jobs):
            faults += found
            if bar:
                bar.update()
        cli.end_progress()
        for fault in faults:
            _tell(fault, tally)
    listed = f'{len(file.images)} images, {file.annotations} annotations, {len(file.categories)} categories'
    print(
        f'{annotations}: {listed}; errors {tally.summary(stops=True)}; warnings {tally.summary(stops=False)}'
    )
    if tally.first(stops=True):
        sys.exit(1)


def _tell(fault: Fault, tally: Tally) -> None:
    tally.add(fault)
    print(f'{"error" if fault.stops else "warning"}: {fault}')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Name every fault of a set in COCO's format. "
        'Exit code 0: none but such as are skipped (warnings); 1: some that crash a run or invalidate its '
        'result (errors); 2: there is nothing to check.',
    )
    parser.add_argument('annotations', metavar='ANN', help='annotation file')
    parser.add_argument('images', metavar='IMG_DIR', nargs='?', help='folder of the images')
    parser.add_argument(
        '--jobs',
        type=int,
        default=os.cpu_count() or 1,
        metavar='N',
        help='images read at a time (default: one a core)',
    )
    parser.add_argument('--no-images', action='store_true', help='check the annotation file alone')
    parser.add_argument('--no-masks', action='store_true', help='for boxes only: pass over segmentations')
    cli.run(run, parser, argv)


if __name__ == '__main__':
    main()
