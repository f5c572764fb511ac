"""CIFAR-10 from JPEG files in an .npz into its own layout: python tools/make_cifar.py cifar10_jpeg.npz DIR"""

from __future__ import annotations

import argparse

from mmhcg.data.cifar import make_cifar
from mmhcg.runs import UserError, cli


def make(npz: str, out: str) -> None:
    """Write the folder, and tell where."""
    try:
        folder = make_cifar(npz, out)
    except (OSError, ValueError) as error:
        raise UserError(str(error)) from error
    print(f'{folder}: made')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Write CIFAR-10's own binary layout, that of configs/pretrain/*_cifar10.py, from an .npz "
        'file that holds it as JPEG files.'
    )
    parser.add_argument(
        'npz', metavar='FILE.npz', help='with train_jpeg, train_offsets, train_labels and test_*'
    )
    parser.add_argument('out', metavar='DIR', help='folder in which cifar-10-batches-bin/ is made')
    cli.run(make, parser, argv)


if __name__ == '__main__':
    main()
