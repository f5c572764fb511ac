"""HCGNet against other backbones: python tools/benchmark.py --arch b --against r50 --phase train"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mmhcg.analysis.benchmark import (
    COMPILED,
    DTYPES,
    GRAPHED,
    MODES,
    ResNetTrunk,
    Result,
    as_in_coco,
    compare,
)
from mmhcg.analysis.benchmark_pages import format_table, plot
from mmhcg.analysis.tables import write_rows
from mmhcg.network import Trunk, deploy
from mmhcg.network.fast import kernels
from mmhcg.runs import UserError
from mmhcg.runs.places import check_picture, check_table

TESTS = Path(__file__).resolve().parents[1] / 'tests'  # where the plain formulation is; wheels have none


def networks(archs: list[str], against: list[str], phase: str) -> Iterator[tuple[str, nn.Module]]:
    """HCGNets first, then the plain formulation of each where it is at hand, then ResNets."""
    import torchvision

    for arch in archs:
        yield arch, as_in_coco(Trunk(arch), phase)
        if phase == 'train':
            yield f'{arch} with_cp', as_in_coco(Trunk(arch, with_cp=True), phase)
    if (TESTS / 'plain.py').is_file():
        sys.path.append(str(TESTS))
        from plain import PlainHCGNet

        for arch in archs:
            yield 'plain' if len(archs) == 1 else f'plain {arch}', PlainHCGNet(arch)
    for name in against:
        resnet = getattr(torchvision.models, name.replace('r', 'resnet'))()
        yield name, as_in_coco(ResNetTrunk(resnet), phase)


def detectors(archs: list[str], against: list[str], phase: str) -> Iterator[tuple[str, nn.Module]]:
    """Mask R-CNN with each backbone."""
    from mmhcg.analysis.mask_rcnn import MaskRCNN

    for arch in archs:
        config = f'mask_rcnn_hcgnet_{arch}_fpn_1x_coco'
        yield arch, MaskRCNN(config).train(phase == 'train')
        if phase == 'train':
            yield f'{arch} with_cp', MaskRCNN(config, with_cp=True).train()
    for name in against:
        yield name, MaskRCNN(f'mask_rcnn_{name}_fpn_1x_coco').train(phase == 'train')


def prepared(network: nn.Module, *, is_hcgnet: bool, device: str, mode: str, dtype: str) -> nn.Module:
    """The network on its device, and as the mode wants it: converted and deployed, or compiled."""
    network = network.to(device)
    if mode.startswith('deploy'):
        network = network.to(DTYPES[dtype])
        return deploy(network) if is_hcgnet else network
    if mode not in COMPILED:
        return network
    if not hasattr(network, 'model'):
        return torch.compile(network, mode=COMPILED[mode])
    network.model.backbone = torch.compile(network.model.backbone, mode=COMPILED[mode])  # of a detector
    return network


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Measure backbones in the COCO recipe, side by side.')
    parser.add_argument('--arch', nargs='+', choices=('b', 'c'), default=['b'], help='HCGNets (default: b)')
    parser.add_argument(
        '--against', nargs='*', choices=('r50', 'r101'), default=['r50'], help='ResNets (default: r50)'
    )
    parser.add_argument(
        '--detector',
        action='store_true',
        help='measure Mask R-CNN with each backbone, not the backbones alone',
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--dtype',
        choices=('fp32', 'fp16', 'bf16'),
        default='fp32',
        help='by autocast; the deploy modes convert',
    )
    parser.add_argument(
        '--mode', choices=MODES, default='eager', help='graph, deploy-graph: as CUDA graphs (default: eager)'
    )
    parser.add_argument('--kernels', action='store_true', help='HCGNet on CUDA with its own kernels')
    parser.add_argument('--phase', choices=('infer', 'train'), default='infer')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=3,
        default=[1, 800, 1216],
        metavar=('N', 'H', 'W'),
        help='images, height and width (default: 1 800 1216)',
    )
    parser.add_argument('--repeats', type=int, default=10, help='timed runs of each (default: 10)')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='add the rows to this file')
    parser.add_argument('--plot', type=Path, metavar='FILE.png', help='draw time and memory')
    args = parser.parse_args(argv)
    if args.mode.startswith('deploy') and args.phase == 'train':
        parser.error(f'--mode {args.mode} is for inference: it cannot be trained')
    if args.mode in GRAPHED and args.device != 'cuda':
        parser.error(f'--mode {args.mode} needs --device cuda')
    if args.mode in GRAPHED and args.detector:
        parser.error(f'--mode {args.mode}: detectors take another way each time and cannot be CUDA graphs')
    if args.device == 'cuda' and not torch.cuda.is_available():
        parser.error(f'--device cuda: PyTorch {torch.__version__} sees no GPU')
    if min(*args.shape, args.repeats) < 1:
        parser.error('--shape and --repeats must be positive')
    try:
        check_table('--csv', args.csv, Result.__annotations__)
        check_picture('--plot', args.plot)
    except UserError as error:
        parser.error(str(error))
    return args


def progress(text: str) -> None:
    """In one line of a terminal. Not that of `mmhcg.runs.cli`, which needs MMEngine."""
    if sys.stderr.isatty():
        print(f'\r{text:60}', end='', file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    batch, height, width = args.shape
    torch.manual_seed(0)  # untrained detectors find nothing with some weights, and so skip their mask head
    image = torch.randn(batch, 3, height, width, device=args.device)
    if args.mode.startswith('deploy'):
        image = image.to(DTYPES[args.dtype])
    candidates = {}
    for name, network in (detectors if args.detector else networks)(args.arch, args.against, args.phase):
        is_hcgnet = name[0] in 'bc'
        network = prepared(network, is_hcgnet=is_hcgnet, device=args.device, mode=args.mode, dtype=args.dtype)
        candidates[f'{name} kernels' if args.kernels and is_hcgnet else name] = network
    with kernels.enabled(args.kernels):
        results = compare(
            candidates,
            image,
            model='Mask R-CNN' if args.detector else 'backbone',
            phase=args.phase,
            mode=args.mode,
            dtype=args.dtype,
            repeats=args.repeats,
            progress=progress,
        )
    progress('\n')
    print(format_table(results))
    if args.csv:
        write_rows(results, args.csv, add=True)
    if args.plot:
        plot(results, args.plot)


if __name__ == '__main__':
    main()
