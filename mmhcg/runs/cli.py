"""What the command lines of `tools/` share."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from mmhcg.installation import DOCTOR
from mmhcg.runs.errors import UserError

try:
    from mmengine.config import DictAction

    from mmhcg.runs.processes import leave_group
    from mmhcg.stack.checkpoints import CheckpointError
    from mmhcg.weights import WeightsError
except ImportError as error:  # every tool that needs MMEngine comes through here
    raise ImportError(f'{error}. {DOCTOR}') from error


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """The options that training and testing have in common."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config>)')
    parser.add_argument(
        '--data-root',
        help="folder in COCO's layout (a classifier's: ImageNet's or CIFAR's), instead of the config's data",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change entries of the config, e.g. train_cfg.max_epochs=3 train_dataloader.batch_size=4',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started several processes; `torchrun` is pytorch (default: none)',
    )
    # PyTorch's older launchers pass the rank as an option instead of the variable LOCAL_RANK.
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def progress(text: str, width: int = 80) -> None:
    """Tell on stderr what is going on: in one line of a terminal, over the last text, else in lines."""
    if sys.stderr.isatty():
        print(f'\r{text:{width}}', end='', file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def end_progress() -> None:
    """Go on in a new line."""
    if sys.stderr.isatty():
        print(file=sys.stderr)


def run(function: Callable[..., Any], parser: argparse.ArgumentParser, argv: list[str] | None) -> None:
    """Call `function` with the parsed options; what the user can mend becomes a message and an exit code."""
    try:
        options = vars(parser.parse_args(argv))
    except (ValueError, AssertionError):  # MMEngine's DictAction splits at `=` and brackets without looking
        parser.error('--cfg-options wants KEY=VALUE, and brackets that fit each other')
    os.environ.setdefault('LOCAL_RANK', str(options.pop('local_rank', 0)))
    try:
        function(**options)
        leave_group()
        return
    except (UserError, CheckpointError, WeightsError) as error:
        message, code = str(error), getattr(error, 'exit_code', UserError.exit_code)
    except OSError as error:
        if error.filename is None:  # of a network, for one
            raise
        message, code = f'{error.filename}: {error.strerror}', UserError.exit_code
    print(f'error: {message}', file=sys.stderr)
    leave_group(alone=True)
    sys.exit(code)
