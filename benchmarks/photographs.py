"""Does HCGNet learn from photographs on this GPU, in mixed precision, from random weights? Beside ResNet-50.

    python benchmarks/photographs.py --data-root tiny_coco --out photographs.csv --iterations 300 1000

trains on a few photographs in COCO's layout for so many iterations and scores the same photographs: a row for
each number of iterations and detector. An AP of what was trained on shows learning, and no more.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mmhcg.analysis.tables import machine, software, write_rows
from mmhcg.runs.errors import UserError
from mmhcg.runs.launch import train
from mmhcg.runs.places import check_table

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DETECTORS = ('mask_rcnn_hcgnet_b_fpn_1x_coco', 'mask_rcnn_r50_fpn_1x_coco')
WARM_UP = 100


@dataclass(frozen=True)
class Row:
    """images_per_s: of the second half, with loading; peak_mb: on a GPU; APs: of what was trained on."""

    detector: str
    iterations: int
    images_per_s: float
    peak_mb: float | str
    box_ap: float
    mask_ap: float
    machine: str
    software: str
    date: str


def options(iterations: int, annotations: Path, batch: int, scale: list[int]) -> dict[str, Any]:
    """What the configs for COCO are changed to: so many iterations, scored once, on the training images."""
    begin = min(WARM_UP, iterations // 2)
    return {
        'train_cfg': dict(
            _delete_=True, type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations
        ),
        'train_dataloader.batch_size': batch,
        'train_dataloader.sampler': dict(_delete_=True, type='InfiniteSampler', shuffle=True),
        'param_scheduler': [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=begin)],
        'optim_wrapper.optimizer.lr': 0.02 * batch / 16,
        'optim_wrapper.clip_grad': dict(max_norm=10, norm_type=2),
        'default_hooks.checkpoint': dict(by_epoch=False, interval=iterations),
        'log_processor.by_epoch': False,
        'val_dataloader.dataset.ann_file': str(annotations),
        'val_evaluator.ann_file': str(annotations),
        'val_dataloader.dataset.data_prefix': dict(img='train2017/'),
        'train_dataloader.dataset.pipeline.2.scale': tuple(scale),
        'val_dataloader.dataset.pipeline.1.scale': tuple(scale),
    }


def measure(detector: str, iterations: int, args: argparse.Namespace, work_dir: Path) -> Row:
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.reset_peak_memory_stats()
    annotations = args.data_root.resolve() / 'annotations' / 'instances_train2017.json'
    runner = train(
        CONFIGS / f'{detector}.py',
        work_dir=work_dir,
        data_root=args.data_root,
        amp=has_gpu,
        seed=0,
        no_pretrained=True,  # the run ends by itself where a loss is not finite
        cfg_options=options(iterations, annotations, args.batch, args.scale),
    )
    scores = runner.message_hub.log_scalars
    box_ap, mask_ap = (round(float(scores[f'val/coco/{kind}_mAP'].current()), 3) for kind in ('bbox', 'segm'))
    return Row(
        detector,
        iterations,
        round(args.batch / scores['train/time'].mean(max(1, iterations // 2)), 2),
        round(torch.cuda.max_memory_allocated() / 1e6, 1) if has_gpu else '',
        box_ap,
        mask_ap,
        machine(torch.device('cuda' if has_gpu else 'cpu')),
        software(),
        date.today().isoformat(),
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Train on a few photographs, and score those.')
    parser.add_argument('--data-root', type=Path, required=True, metavar='DIR', help="in COCO's layout")
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.csv', help='rows are added to it')
    parser.add_argument('--iterations', type=int, nargs='+', default=[300])
    parser.add_argument('--batch', type=int, default=4, help='images of a step (default: 4)')
    parser.add_argument('--scale', type=int, nargs=2, default=[1333, 800], metavar=('W', 'H'))
    args = parser.parse_args(argv)
    try:
        check_table('--out', args.out, Row.__annotations__)
    except UserError as error:
        parser.error(str(error))
    for iterations in args.iterations:
        for detector in DETECTORS:
            with tempfile.TemporaryDirectory() as folder:
                row = measure(detector, iterations, args, Path(folder, 'run'))
            write_rows([row], args.out, add=True)
            print(row)


if __name__ == '__main__':
    main()
