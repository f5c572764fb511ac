"""The authors' checkpoints into ours: python tools/convert_checkpoint.py SRC DST.safetensors"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from mmhcg.weights import KINDS, WeightsError, check_new, convert_checkpoint, restore_checkpoint, save_weights


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
    parser.add_argument(
        '--reverse', action='store_true', help="go back: converted or trained weights to the authors' names"
    )
    options = parser.parse_args(argv)
    convert = restore_checkpoint if options.reverse else convert_checkpoint
    try:
        from mmhcg.stack.checkpoints import CheckpointError
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error}: reading checkpoints needs MMEngine, pip install 'mmhcg[standalone]'")
    try:
        check_new(options.dst)
        state, report = convert(options.src, options.kind)
        report = replace(report, sha256=save_weights(state, options.dst))
    except (CheckpointError, WeightsError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    print(f'{options.src} -> {options.dst}\n{report}')


if __name__ == '__main__':
    main()
