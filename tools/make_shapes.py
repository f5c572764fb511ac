"""Make a COCO-format set of generated shapes: python tools/make_shapes.py OUT --images 1000 --seed 0"""

import argparse
import sys

from mmhcg.data import make_shapes


def main() -> None:
    parser = argparse.ArgumentParser(description='Make a COCO-format set of generated shapes.')
    parser.add_argument('out', help="folder for the set, in COCO's layout; must not exist or be empty")
    parser.add_argument('--images', type=int, required=True, help='number of train images')
    parser.add_argument('--seed', type=int, required=True, help='same seed, same bytes')
    parser.add_argument('--val-images', type=int, help='held-out images (default: a fifth of --images)')
    parser.add_argument('--size', type=int, default=128, help='side of the images in pixels (default: 128)')
    args = parser.parse_args()
    try:
        made = make_shapes(args.out, args.images, args.seed, val_images=args.val_images, size=args.size)
    except (OSError, ValueError) as error:
        sys.exit(f'make_shapes: {error}')
    print(f'{args.out}: {"made" if made else "already there, left as it is"}')


if __name__ == '__main__':
    main()
