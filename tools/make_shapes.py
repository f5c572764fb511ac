"""Make a COCO-format set of generated shapes: python tools/make_shapes.py OUT --images 1000 --seed 0"""

from __future__ import annotations

import argparse

from mmhcg.data import make_shapes
from mmhcg.runs import UserError, cli


def make(out: str, images: int, seed: int, val_images: int | None, size: int) -> None:
    """Make the set, and tell whether it was there already."""
    try:
        made = make_shapes(out, images, seed, val_images=val_images, size=size)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    print(f'{out}: {"made" if made else "already there, left as it is"}')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Make a COCO-format set of generated shapes.')
    parser.add_argument('out', help="folder for the set, in COCO's layout; must not exist or be empty")
    parser.add_argument('--images', type=int, required=True, help='number of train images')
    parser.add_argument('--seed', type=int, required=True, help='same seed, same bytes')
    parser.add_argument('--val-images', type=int, help='held-out images (default: a fifth of --images)')
    parser.add_argument('--size', type=int, default=128, help='side of the images in pixels (default: 128)')
    cli.run(make, parser, argv)


if __name__ == '__main__':
    main()
