"""Kill tools/train.py at random moments around its saves, resume it each time: `kill_trials.py FOLDER SEED`.

FOLDER holds tiny.py and shapes/. Each run is forked from a process that has imported all there is to import.
Prints a line of JSON for each `max_keep_ckpts`.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

import mmengine.config.config
import torch
from tiny_run import load_tool

TRIALS = 25
CONFIG = """
_base_ = 'tiny.py'
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=1, max_keep_ckpts={keep}))
train_cfg = dict(max_epochs=1000, val_interval=1000)
custom_hooks = [dict(type='faults.Progress', pipe={pipe})]
"""


def start(folder: Path, keep: int, resume: bool) -> tuple[int, int]:
    """A run in a process of its own: its number, and the pipe by which it tells how far it is."""
    pipe, theirs = os.pipe()
    if pid := os.fork():
        os.close(theirs)
        return pid, pipe
    config = folder / f'keep_{keep}.py'
    config.write_text(CONFIG.format(keep=keep, pipe=theirs))
    with open(folder / f'keep_{keep}.log', 'ab') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    argv = [config, '--data-root', folder / 'shapes', '--work-dir', folder / f'work_{keep}']
    argv += ['--no-pretrained', '--resume'] if resume else ['--no-pretrained', '--seed', 0]
    try:
        load_tool('train').main([str(arg) for arg in argv])
    finally:
        os._exit(1)


def trial(folder: Path, keep: int, resume: bool, moment: float) -> tuple[int, int]:
    """The iterations with which a run began, and before which it had saved when it was killed.

    `moment` 0 is when the second save begins, and 1 when it ends, if it takes as long as the first.
    """
    pid, pipe = start(folder, keep, resume)
    with os.fdopen(pipe) as lines:
        began = int(next(lines).split()[1])
        next(lines)  # save
        saving = time.perf_counter()
        next(lines)  # iter
        duration = time.perf_counter() - saving
        next(lines)  # save
        time.sleep(moment * duration)
        os.kill(pid, signal.SIGKILL)
        more = re.findall(r'iter (\d+)\n', lines.read())
    os.waitpid(pid, 0)
    return began, int(more[-1]) if more else began + 1


def main(folder: Path, seed: int) -> None:
    numbers = random.Random(seed)
    for keep in (1, 2):
        saved, lost, torn, kept = 0, [], 0, 0
        for number in range(TRIALS + 1):  # the first has nothing to resume, the last resumes the last kill's
            began, reached = trial(folder, keep, number > 0, numbers.uniform(0, 1.2))
            lost.append(saved - began)
            saved = reached
            torn += len(list(folder.glob(f'work_{keep}/*.unfinished')))
            kept = max(kept, len(list(folder.glob(f'work_{keep}/*.pth'))))
        print(json.dumps(dict(keep=keep, lost=lost[1:], torn=torn, kept=kept)), flush=True)


if __name__ == '__main__':
    import mmdet.datasets
    import mmdet.evaluation
    import mmdet.models
    import mmdet.visualization  # noqa: F401

    import mmhcg.runs.safe_runner  # noqa: F401

    # Formatting the config for the log and for each checkpoint takes longer than all else.
    mmengine.config.config.FormatCode = lambda code, **options: (code, True)
    torch.set_num_threads(1)
    gc.freeze()  # MMDetection collects garbage whenever it has read annotations
    assert threading.active_count() == 1  # others would not live on in the forks
    main(Path(sys.argv[1]), int(sys.argv[2]))
