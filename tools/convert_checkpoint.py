"""Convert an authors' checkpoint: python tools/convert_checkpoint.py HCGNet_B_best.pth.tar DST.safetensors"""

from __future__ import annotations

import argparse
import sys

from mmhcg.stack.checkpoints import CheckpointError
from mmhcg.weights import WeightsError, convert_checkpoint, save_safetensors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Convert the authors' ImageNet checkpoint of HCGNet-B or C to weights for the backbone."
    )
    parser.add_argument('src', help="the authors' file, e.g. HCGNet_B_best.pth.tar")
    parser.add_argument('dst', help='file to write, e.g. checkpoints/hcgnet_b_in1k.safetensors')
    options = parser.parse_args(argv)
    if not options.dst.endswith('.safetensors'):
        parser.error(f'DST must end in .safetensors, not {options.dst}')
    try:
        state, report = convert_checkpoint(options.src)
        digest = save_safetensors(state, options.dst)
    except (CheckpointError, WeightsError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    print(
        f'HCGNet-{report.arch.upper()}: {report.loaded} of {report.expected} entries from {options.src}, '
        f'left over: {", ".join(report.left_over) or "nothing"}\n{options.dst}  SHA-256 {digest}'
    )


if __name__ == '__main__':
    main()
