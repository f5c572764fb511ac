"""HCGNet into a detector's config: python tools/swap_backbone.py CONFIG --out FILE.py --check"""

from __future__ import annotations

import argparse
import os
import sys
import warnings

from mmhcg.runs import cli


def swap(config: str, arch: str, pretrained: str | bool | None, out: str | None, check: bool) -> None:
    """Print the new config, or write it to `out`."""
    from mmhcg.runs.config import detector_of, load_config
    from mmhcg.runs.places import refuse_empty
    from mmhcg.swap import check_out, config_text, swap_backbone, write_config

    refuse_empty('--pretrained', pretrained)
    if out is not None:
        check_out(out)
    old = load_config(config)
    new = swap_backbone(old, arch, pretrained=pretrained)
    text = config_text(config, old, new, out)  # before the check, which takes a while
    if check:
        from mmengine.logging import MMLogger

        from mmhcg.swap.comparison import compare_detectors

        MMLogger.get_instance('check', log_level='ERROR')  # where each weight came from is not the question
        warnings.simplefilter('ignore')
        table = compare_detectors(old, new, progress=cli.progress)
        cli.end_progress()
        print(table)
    if out is None:
        print(text, end='')
    else:
        write_config(text, out)
        print(f'written to {out}')
    init = detector_of(new).backbone.init_cfg
    if init and '://' not in init.checkpoint and not os.path.exists(init.checkpoint):
        print(f'note: {init.checkpoint} is not there yet; training will look for it', file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Put HCGNet in place of a detector's backbone.")
    parser.add_argument('config', help="config file, or one of MMDetection's: mmdet::family/name.py")
    parser.add_argument('--arch', choices=('b', 'c'), default='b', help='variant (default: b)')
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument('--pretrained', metavar='FILE', help='first weights of the backbone')
    weights.add_argument(
        '--no-pretrained', dest='pretrained', action='store_false', help='random weights, nothing frozen'
    )
    weights.set_defaults(pretrained=None)
    parser.add_argument(
        '--out',
        metavar='FILE.py',
        help='new file for the config (default: print it; where it inherits from a file, that path is then '
        'relative to this folder)',
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='train and test a step on random images and compare the detectors',
    )
    cli.run(swap, parser, argv)


if __name__ == '__main__':
    main()
