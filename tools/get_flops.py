"""What a detector costs: python tools/get_flops.py configs/mask_rcnn_hcgnet_b_fpn_1x_coco.py"""

from __future__ import annotations

import argparse
import warnings

from mmhcg.runs import UserError, cli
from mmhcg.runs.config import build_detector


def show_complexity(config: str, shape: tuple[int, int], count: str) -> None:
    """Print the table, and the sums as papers print them."""
    if min(shape) < 1:
        raise UserError(f'--shape: H and W must be positive, not {shape[0]} and {shape[1]}')
    warnings.simplefilter('ignore')  # of detectors and PyTorch, which are not of this table
    model = build_detector(config)
    from mmhcg.analysis.complexity import count_complexity, format_table  # imports MMDetection

    try:
        parts = count_complexity(model, (shape[0], shape[1]))
    except Exception as error:  # of any detector, at any size
        raise UserError(
            f'{config}: its model does not run on an empty image of {shape[0]}x{shape[1]}: '
            f'{type(error).__name__}: {error}'
        ) from error
    print(format_table(parts, count))
    trainable = sum(part.trainable for part in parts) / 1e6
    multiply_adds = sum(getattr(part, count) for part in parts) / 1e9
    print(
        f'\n{multiply_adds:.1f} G multiply-adds ({count}) and {trainable:.1f} M trainable parameters, '
        f'for one image of {shape[0]}x{shape[1]}'
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description='Count parameters, multiply-adds and activations of each part of a detector.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=[800, 1280],
        metavar=('H', 'W'),
        help='of the image (default: 800 1280)',
    )
    parser.add_argument(
        '--count',
        choices=('exact', 'paper'),
        default='exact',
        help='exact: convolutions, linear layers and matrix products, HCGNet as the paper writes it. paper: '
        "MMDetection 1's counter, which the paper used: it takes a transposed convolution four times and "
        'adds norms, activations and pooling (default: exact)',
    )
    cli.run(show_complexity, parser, argv)


if __name__ == '__main__':
    main()
