"""HCGNet against other backbones: python tools/benchmark.py --arch b --against r50 --phase train"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from mmhcg.analysis.benchmark import (
    COMPILED,
    GRAPHED,
    MODES,
    Stages,
    as_in_coco,
    compare,
    format_table,
    plot,
    write_csv,
)
from mmhcg.network import Trunk, deploy, kernels

TESTS = Path(__file__).resolve().parents[1] / 'tests'  # where the plain formulation is; wheels have none


def networks(archs: list[str], against: list[str], mode: str, phase: str) -> Iterator[tuple[str, nn.Module]]:
    """HCGNet first, then the plain formulation where it is at hand, then ResNets."""
    import torchvision

    for arch in archs:
        trunk = Trunk(arch)
        yield arch, deploy(trunk) if mode.startswith('deploy') else trunk
        if phase == 'train':
            yield f'{arch} with_cp', Trunk(arch, with_cp=True)
    if (TESTS / 'plain.py').is_file():
        sys.path.append(str(TESTS))
        from plain import PlainHCGNet

        yield 'plain', PlainHCGNet(archs[0])
    for name in against:
        yield name, Stages(getattr(torchvision.models, name.replace('r', 'resnet'))())


def detectors(archs: list[str], against: list[str], mode: str, phase: str) -> Iterator[tuple[str, nn.Module]]:
    """Mask R-CNN with each backbone."""
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # MMEngine's
    from mmhcg.analysis.mask_rcnn import MaskRCNN

    for arch in archs:
        config = f'mask_rcnn_hcgnet_{arch}_fpn_1x_coco'
        detector = MaskRCNN(config)
        yield arch, deploy(detector) if mode.startswith('deploy') else detector
        if phase == 'train':
            yield f'{arch} with_cp', MaskRCNN(config, with_cp=True)
    for name in against:
        yield name, MaskRCNN(f'mask_rcnn_{name}_fpn_1x_coco')


def main(argv: list[str] | None = None) -> None:
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
    parser.add_argument('--dtype', choices=('fp32', 'fp16', 'bf16'), default='fp32', help='by autocast')
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

    batch, height, width = args.shape
    image = torch.randn(batch, 3, height, width, device=args.device)
    candidates = {}
    source = detectors if args.detector else networks
    for name, network in source(args.arch, args.against, args.mode, args.phase):
        network = network.to(args.device)
        if args.detector:
            network.train(args.phase == 'train')
        elif hasattr(network, 'stages'):
            network = as_in_coco(network, args.phase)
        if args.mode in COMPILED and args.detector:
            network.model.backbone = torch.compile(network.model.backbone, mode=COMPILED[args.mode])
        elif args.mode in COMPILED:
            network = torch.compile(network, mode=COMPILED[args.mode])
        candidates[f'{name} kernels' if args.kernels and name[0] in 'bc' else name] = network
    with kernels.enabled(args.kernels):
        results = compare(
            candidates,
            image,
            model='Mask R-CNN' if args.detector else 'backbone',
            phase=args.phase,
            mode=args.mode,
            dtype=args.dtype,
            repeats=args.repeats,
            progress=lambda text: print(f'\r{text:60}', end='', file=sys.stderr, flush=True),
        )
    print(file=sys.stderr)
    print(format_table(results))
    if args.csv:
        write_csv(results, args.csv)
    if args.plot:
        plot(results, args.plot)


if __name__ == '__main__':
    main()
