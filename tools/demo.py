"""See HCGNet train Mask R-CNN on generated shapes, with scores and pictures: python tools/demo.py"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

CONFIG = Path(__file__).resolve().parent.parent / 'configs' / 'mask_rcnn_hcgnet_demo_shapes.py'


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Train, score and draw HCGNet on generated shapes.')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for everything that is made')
    parser.add_argument('--seed', type=int, default=0, help='of the data and of the training (default: 0)')
    args = parser.parse_args(argv)

    # The maps are too small to share among threads: on two idle cores an iteration took as long with two
    # threads as with one, on busy ones much longer. Read once, when PyTorch is imported.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # MMEngine's, on every start
    from mmhcg.runs import UserError
    from mmhcg.runs.demo import run_demo

    try:
        run_demo(CONFIG, args.work_dir, args.seed)
    except (UserError, FileExistsError) as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
