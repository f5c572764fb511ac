"""Train a detector or a classifier: python tools/train.py CONFIG --data-root DIR"""

from __future__ import annotations

import argparse

from mmhcg.runs import cli, train


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description='Train a detector, or a classifier of configs/pretrain.',
        epilog='Exit codes: 2 if the options, config or data are invalid, 3 where numbers become NaN or '
        'infinite, and 75 after SIGTERM or SIGUSR1: the run has saved a checkpoint, and --resume goes on.',
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const=True,
        default=False,
        metavar='CKPT',
        help='go on from this checkpoint, or without a value from the newest one in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision with dynamic loss scaling')
    parser.add_argument('--seed', type=int, help='random seed')
    parser.add_argument(
        '--no-pretrained',
        action='store_true',
        help='start the backbone from random weights, freeze nothing and let its norms learn',
    )
    cli.add_run_options(parser)
    cli.run(train, parser, argv)


if __name__ == '__main__':
    main()
