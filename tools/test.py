"""Score a detector or a classifier: python tools/test.py CONFIG CHECKPOINT --data-root DIR"""

from __future__ import annotations

import argparse

from mmhcg.runs import cli, test


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description='Score a detector with the twelve COCO numbers, or a classifier by its top-1 and top-5.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='RESULTS.pkl', help='write the predictions to this file')
    parser.add_argument(
        '--show-dir', help='draw every image into this folder, ground truth beside detections'
    )
    cli.add_run_options(parser)
    cli.run(test, parser, argv)


if __name__ == '__main__':
    main()
