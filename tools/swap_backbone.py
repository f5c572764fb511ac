"""HCGNet into a detector's config: python tools/swap_backbone.py CONFIG --out FILE.py --check"""

from __future__ import annotations

import argparse
import os
import warnings

from mmhcg.runs import UserError, cli


def swap(config: str, arch: str, pretrained: str | bool | None, out: str | None, check: bool) -> None:
    """Print the new config, or write it to `out`."""
    from mmhcg.runs.config import load_config
    from mmhcg.swap import config_text, swap_backbone, write_config

    if out is not None and os.path.exists(out):  # before the check, which takes a while
        raise UserError(f'{out} is there already: remove it or name another file')
    old, new = load_config(config), swap_backbone(config, arch, pretrained=pretrained)
    if check:
        from mmengine.logging import MMLogger

        from mmhcg.analysis.comparison import compare_detectors

        MMLogger.get_instance('check', log_level='ERROR')  # where each weight came from is not the question
        warnings.simplefilter('ignore')
        print(compare_detectors(old, new))
    if out is None:
        print(config_text(config, old, new), end='')
    else:
        try:
            write_config(config, old, new, out)
        except OSError as error:
            raise UserError(str(error)) from error
        print(f'written to {out}')


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
    parser.add_argument('--out', metavar='FILE.py', help='new file for the config (default: print it)')
    parser.add_argument(
        '--check',
        action='store_true',
        help='train and test a step on random images and compare the detectors',
    )
    cli.run(swap, parser, argv)


if __name__ == '__main__':
    main()
