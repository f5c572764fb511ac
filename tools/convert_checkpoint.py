"""The authors' checkpoints into ours: python tools/convert_checkpoint.py SRC DST.safetensors"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from mmhcg.weights import KINDS, check_new, convert_checkpoint, restore_checkpoint, save_weights


def convert(src: str, dst: str, kind: str, reverse: bool, with_classifier: bool) -> None:
    """Convert `src` to the new file `dst`, and say what was found."""
    from mmhcg.runs import UserError

    try:
        check_new(dst)  # before the work
        if reverse:
            state, report = restore_checkpoint(src, kind)
        else:
            state, report = convert_checkpoint(src, kind, with_classifier)
        report = replace(report, sha256=save_weights(state, dst))
    except OSError as error:
        raise UserError(str(error)) from error
    print(f'{src} -> {dst}\n{report}')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Convert a checkpoint of HCGNet's authors: an ImageNet one (B or C) to weights for the "
        'backbone, the detection one to a Mask R-CNN of MMDetection 3.'
    )
    parser.add_argument('src', help="the authors' file, e.g. HCGNet_B_best.pth.tar")
    parser.add_argument(
        'dst', help='new file, .safetensors or .pth with nothing but tensors; its folder is made if need be'
    )
    parser.add_argument(
        '--kind', choices=KINDS, default='auto', help='of the file (default: what its names say)'
    )
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument(
        '--reverse', action='store_true', help="go back: converted or trained weights to the authors' names"
    )
    direction.add_argument(
        '--with-classifier',
        action='store_true',
        help='keep the classifier of an ImageNet file, to score it: tools/test.py with a config of '
        'configs/pretrain',
    )
    try:
        from mmhcg.runs import cli
    except ImportError as error:
        sys.exit(f'error: reading checkpoints needs MMEngine: {error}')
    cli.run(convert, parser, argv)


if __name__ == '__main__':
    main()
