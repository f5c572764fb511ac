"""HCGNet as ONNX or PT2: python tools/export.py b --out hcgnet_b.onnx --dynamic"""

from __future__ import annotations

import argparse

from torch import nn

from mmhcg.installation import hint
from mmhcg.runs import UserError, cli


def load_backbone(source: str, checkpoint: str | None) -> nn.Module:
    """The backbone of a config, or that of a variant, with the weights of a checkpoint if there is one."""
    from mmhcg import HCGNet, list_archs
    from mmhcg.runs.config import build_detector

    backbone = HCGNet(source) if source in list_archs() else build_detector(source).backbone
    if not isinstance(backbone, HCGNet):
        raise UserError(f'{source}: its backbone is {type(backbone).__name__} and no HCGNet')
    if checkpoint is not None:
        from mmhcg.runs.preflight import check_checkpoint
        from mmhcg.weights.fit import load_weights

        load_weights(checkpoint, check_checkpoint(checkpoint, fetch=True), backbone)
    return backbone


def run(source: str, out: str, dynamic: bool, shape: tuple[int, int, int], checkpoint: str | None) -> None:
    """Export, and tell what was checked."""
    from mmhcg.export import DYNAMIC_SIZES, OPSET, SUFFIXES, TOLERANCE, ExportError, export

    if not out.endswith(SUFFIXES):
        raise UserError(f'{out} must end in {" or ".join(SUFFIXES)}')
    if min(shape) < 1:
        raise UserError(f'--shape must be positive, not {" ".join(map(str, shape))}')
    sizes = DYNAMIC_SIZES if dynamic else ((shape[0], shape[1], shape[2]),)
    try:
        errors = export(load_backbone(source, checkpoint), out, None if dynamic else sizes[0])
    except ImportError as error:
        raise UserError(f'{error}: {hint("export")}') from error
    except (ExportError, OSError) as error:
        raise UserError(str(error)) from error
    what = f'ONNX, opset {OPSET}' if out.endswith('.onnx') else 'a program of torch.export'
    print(f'{out}: {what}, for {"any size" if dynamic else "one size"}. Equal to the network to {TOLERANCE}:')
    for (batch, height, width), largest in zip(sizes, errors):
        print(f'  {batch} of {height} x {width}: largest relative error {largest:.1e}')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Export HCGNet, and check what came out.')
    parser.add_argument('source', metavar='CONFIG_OR_ARCH', help='a config file, mmhcg::NAME.py, or b, c')
    parser.add_argument('--out', required=True, metavar='FILE', help='new file: .onnx or .pt2')
    parser.add_argument('--dynamic', action='store_true', help='for batches and images of any size')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=3,
        default=[1, 800, 1216],
        metavar=('N', 'H', 'W'),
        help='without --dynamic: the one size (default: 1 800 1216)',
    )
    parser.add_argument('--checkpoint', metavar='FILE', help='weights of the backbone or of the detector')
    cli.run(run, parser, argv)


if __name__ == '__main__':
    main()
