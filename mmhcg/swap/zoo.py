"""HCGNet into every config that MMDetection ships: which can take it, which of these build, and which run.

Each config has a process of its own, so that one that crashes or never ends stops nothing. Results go to a
CSV file as they come; a second run goes on where the first one ended.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from time import monotonic
from typing import Any

import mmdet
import torch

import mmhcg
from mmhcg.analysis.tables import read_table, write_rows
from mmhcg.runs.config import build_detector, detector_of, load_config
from mmhcg.runs.errors import UserError
from mmhcg.runs.places import check_table
from mmhcg.runs.pretrained import without_pretrained
from mmhcg.swap import SwapError, swap_backbone
from mmhcg.swap.rehearsal import build_untrained, rehearse

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
SECONDS = 300  # that a config may take
OK = 'ok'
SOFTWARE = f'mmhcg {mmhcg.__version__}, mmdet {mmdet.__version__}, PyTorch {torch.__version__.split("+")[0]}'


@dataclass(frozen=True)
class Row:
    """What became of a config.

    Attributes:
        config: 'family/name.py', as in `mmdet::family/name.py`.
        status: 'replaceable', 'no backbone', 'refused' (by `swap_backbone`), 'broken before' the swap, or
            'crashed', when it is not known in which of these.
        reason: Of all but the first two.
        parameters: Of the original detector.
        built: 'ok', or why the swapped detector cannot be built.
        control: 'ok', or why the original detector does not run a step of training and a prediction; empty
            where this was not tried: it is done for one config a family.
        swapped: The same of the swapped detector.
        software: With which this was found.
    """

    config: str
    status: str
    reason: str = ''
    parameters: int = 0
    built: str = ''
    control: str = ''
    swapped: str = ''
    software: str = SOFTWARE


def all_configs() -> list[str]:
    """Every config file of the installed MMDetection but those that others inherit from."""
    paths = (path.relative_to(CONFIGS) for path in sorted(CONFIGS.rglob('*.py')))
    return [path.as_posix() for path in paths if '_base_' not in path.parts]


def build_both(config: str) -> Row:
    """Sort a config, and build its detector with HCGNet."""
    try:
        cfg = without_pretrained(load_config(CONFIGS / config))
        if not isinstance(cfg.get('model'), dict) or not detector_of(cfg).get('backbone'):
            return Row(config, 'no backbone')
        parameters = sum(p.numel() for p in build_detector(cfg).parameters())
    except Exception as error:  # of any config
        return Row(config, 'broken before', _short(error))
    try:
        swapped = swap_backbone(cfg)
        build_detector(swapped)
    except SwapError as error:
        return Row(config, 'refused', _short(error), parameters)
    except Exception as error:  # whatever else goes wrong from here on is our fault
        return Row(config, 'replaceable', '', parameters, _short(error))
    return Row(config, 'replaceable', '', parameters, OK)


def run_control(row: Row) -> Row:
    """Rehearse the original detector."""
    try:
        rehearse(build_untrained(load_config(CONFIGS / row.config)))
    except Exception as error:  # of any detector
        return replace(row, control=_short(error))
    return replace(row, control=OK)


def run_swapped(row: Row) -> Row:
    """Rehearse the detector with HCGNet, from random weights and with nothing frozen."""
    try:
        cfg = without_pretrained(load_config(CONFIGS / row.config))
        lacking = rehearse(build_untrained(swap_backbone(cfg))).without_gradient
    except Exception as error:
        return replace(row, swapped=_short(error))
    return replace(row, swapped=f'no gradient: {", ".join(lacking[:3])}' if lacking else OK)


def run_zoo(path: Path, jobs: int = 2, steps: bool = True) -> list[Row]:
    """Go through all configs, then through the families until one config of each has run.

    Rows in the file are kept if they were found with the software that is running now.
    """
    check_table('the table', path, Row.__annotations__)
    old: list[dict[str, Any]] = read_table(path) if path.is_file() else []
    old = [{**row, 'parameters': int(row['parameters'])} for row in old if row['software'] == SOFTWARE]
    rows = {row['config']: Row(**row) for row in old}
    for row in _each(build_both, [name for name in all_configs() if name not in rows], jobs):
        rows[row.config] = row
        _write(rows, path)
    families: dict[str, list[Row]] = {}
    for row in sorted(rows.values(), key=lambda row: row.parameters):
        if row.built == OK:
            families.setdefault(row.config.split('/')[0], []).append(row)
    while steps:
        # The smallest config of each family that has not been tried, unless one has run.
        waiting = [
            next((row for row in members if not rows[row.config].control), None)
            for members in families.values()
            if not any(rows[row.config].control == OK for row in members)
        ]
        waiting = [row for row in waiting if row is not None]
        if not waiting:
            break
        for row in _each(run_control, waiting, jobs):
            rows[row.config] = row
            _write(rows, path)
    waiting = [row for row in rows.values() if steps and row.control == OK and not row.swapped]
    for row in _each(run_swapped, waiting, jobs):
        rows[row.config] = row
        _write(rows, path)
    return list(rows.values())


def _each(function: Callable[..., Row], arguments: Sequence, jobs: int) -> Iterator[Row]:
    """`function` of each argument, each in a process, `jobs` at a time; in the order in which they end."""
    context = multiprocessing.get_context('fork')
    waiting = list(reversed(arguments))
    running: dict[Any, tuple[Any, Any, float]] = {}  # connection -> process, argument, when it is stopped
    while waiting or running:
        while waiting and len(running) < jobs:
            argument = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_report, args=(function, argument, sender), daemon=True)
            process.start()
            sender.close()
            running[receiver] = (process, argument, monotonic() + SECONDS)
        ready: Any
        for ready in wait(list(running), timeout=1):
            process, argument, _ = running.pop(ready)
            try:
                yield ready.recv()
            except EOFError:
                process.join()
                yield _failed(argument, f'its process ended with {process.exitcode}')
        for receiver, (process, argument, end) in list(running.items()):
            if monotonic() > end:
                os.kill(process.pid, signal.SIGKILL)
                del running[receiver]
                yield _failed(argument, f'took more than {SECONDS} seconds')


def _report(function: Callable[..., Row], argument: str | Row, sender: Connection) -> None:
    warnings.simplefilter('ignore')
    with open(os.devnull, 'w') as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        sender.send(function(argument))


def _failed(argument: str | Row, reason: str) -> Row:
    if isinstance(argument, Row):
        is_swapped = argument.control == OK
        return replace(argument, swapped=reason) if is_swapped else replace(argument, control=reason)
    return Row(argument, 'crashed', reason)


def _short(error: Exception) -> str:
    """An error on one line, without the folders of this machine."""
    text = ' '.join(str(error).split()).replace(f'{CONFIGS}/', '')
    text = re.sub(r'(?<![\w.])/[\w.-]+/[^\s\'",:;)]*', '(path)', text)
    cause = error.__cause__ if isinstance(error, UserError) and error.__cause__ else error
    return f'{type(cause).__name__}: {text}'[:300]


def _write(rows: Mapping[str, Row], path: Path) -> None:
    write_rows([rows[config] for config in sorted(rows)], path)
