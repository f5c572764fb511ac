"""See HCGNet train Mask R-CNN on generated shapes, with scores and pictures: python tools/demo.py"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# The maps are too small to share among threads: on two idle cores an iteration took as long with two threads
# as with one, on busy ones much longer. Read once, when PyTorch is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')

from mmhcg.runs import cli

CONFIG = Path(__file__).resolve().parent.parent / 'configs' / 'mask_rcnn_hcgnet_demo_shapes.py'


def run(work_dir: str, seed: int) -> None:
    """Run the demo."""
    from mmhcg.runs.demo import run_demo

    run_demo(CONFIG, work_dir, seed)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Train, score and draw HCGNet on generated shapes.')
    parser.add_argument('--work-dir', default='work_dirs/demo', help='folder for everything that is made')
    parser.add_argument('--seed', type=int, default=0, help='of the data and of the training (default: 0)')
    cli.run(run, parser, argv)


if __name__ == '__main__':
    main()
