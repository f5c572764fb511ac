"""Accuracy or box AP under attack: python tools/robustness.py CONFIG CHECKPOINT --eps 0 0.001 0.002"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from mmhcg.runs import UserError, cli
from mmhcg.runs.places import check_picture, check_table, refuse_empty

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT / 'benchmarks/results/paper_robustness.csv'  # wheels have none
IMAGENET = 1000  # classes, of the paper's classifiers


def run(
    config: str,
    checkpoint: str,
    against: list[list[str]],
    eps: list[float],
    attack: str,
    csv: Path | None,
    plot: Path | None,
    data_root: str | None,
    limit: int | None,
    cfg_options: dict[str, Any] | None,
) -> None:
    """Measure, write each row when it is there, print and draw all."""
    if not all(0 <= strength <= 1 for strength in eps):
        raise UserError(f'--eps: changes of pixels that go from 0 to 1, not {" ".join(map(str, eps))}')
    refuse_empty('--data-root', data_root)
    from mmhcg.analysis import robustness  # imports MMDetection
    from mmhcg.analysis.tables import write_rows
    from mmhcg.analysis.torchvision_net import num_classes, put_in, save_renamed
    from mmhcg.runs.preflight import check_checkpoint

    check_picture('--plot', plot)
    csv = csv or (plot.with_suffix('.csv') if plot else None)
    check_table('--csv', csv, robustness.Row.__annotations__)
    networks = [(config, checkpoint), *against]
    names = robustness.names_of(networks)
    for _, file in networks:
        check_checkpoint(file)
    options: dict[str, Any] = dict(data_root=data_root, limit=limit, cfg_options=cfg_options)
    cfg = robustness.prepare(config, **options)
    runs: list[tuple[Any, str | Path]] = [(cfg, checkpoint)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (other, file) in enumerate(against):
            if '::' in other or other.endswith('.py'):
                runs.append((robustness.prepare(other, **options), file))
            else:
                renamed = Path(folder, f'{number}.pth')
                runs.append((put_in(cfg, other), renamed))
                save_renamed(file, renamed)
        for name, (run_cfg, weights) in zip(names, runs):
            for row in robustness.measure(run_cfg, weights, eps, attack, name):
                rows.append(row)
                if csv:
                    write_rows([row], csv, add=True)
    if attack == 'fgsm' and num_classes(cfg) == IMAGENET and PAPER.is_file():
        rows += robustness.read_rows(PAPER)
    print(robustness.format_table(rows))
    if plot:
        robustness.plot(rows, plot)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description='Score a network on images that were changed, unnoticeably, to mislead it: an mmpretrain '
        "classifier's top-1 accuracy or an MMDetection detector's box AP."
    )
    parser.add_argument('config', metavar='CONFIG', help='config file of an ImageClassifier or of a detector')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='checkpoint file')
    parser.add_argument(
        '--eps',
        type=float,
        nargs='+',
        required=True,
        metavar='EPS',
        help='largest changes of a pixel whose values go from 0 to 1; 0 is a normal test',
    )
    parser.add_argument('--attack', choices=('fgsm', 'pgd'), default='fgsm', help='(default: fgsm)')
    parser.add_argument(
        '--against',
        nargs=2,
        action='append',
        default=[],
        metavar=('NETWORK', 'CHECKPOINT'),
        help="a network beside it: another config, or beside a classifier the name of one of torchvision's, "
        'e.g. resnet50; and its weights',
    )
    parser.add_argument(
        '--data-root',
        metavar='DIR',
        help="folder in COCO's layout (a classifier's: ImageNet's or CIFAR's), instead of the config's data",
    )
    parser.add_argument('--limit', type=int, metavar='N', help='test on N images, spread over the test set')
    parser.add_argument('--csv', type=Path, metavar='FILE', help='add the rows to this file')
    parser.add_argument(
        '--plot', type=Path, metavar='FILE.png', help='draw the curves; the rows go beside it, too'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.DictAction,
        metavar='KEY=VALUE',
        help='change entries of the config',
    )
    cli.run(run, parser, argv)


if __name__ == '__main__':
    main()
