"""Which checkpoint a run goes on from: one that is whole, named in the log, or none at all with an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.fileio import put_text

from mmhcg.runs.errors import UserError
from mmhcg.runs.preflight import check_checkpoint

POINTER = 'last_checkpoint'  # MMEngine's file in the work dir that names the newest checkpoint


def settle_resume(resume: bool, load_from: str | None, work_dir: str) -> tuple[bool, str | None, list[str]]:
    """Whether a run resumes, from which file (or what it loads its weights from), and notes for the log.

    A run that `torchrun --max-restarts` has started again resumes by itself if it has saved anything yet.

    Raises:
        UserError: there is nothing to resume from.
    """
    if was_restarted() and os.path.isfile(os.path.join(work_dir, POINTER)):
        resume, load_from = True, None
    if not resume or load_from:
        return resume, load_from, []
    path, notes = newest_checkpoint(work_dir)
    return True, path, notes


def was_restarted() -> bool:
    """Whether torchrun has started this process in the place of one that died."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def newest_checkpoint(work_dir: str) -> tuple[str, list[str]]:
    """The file that `last_checkpoint` names, else the newest one that is whole and holds training state.

    Returns it, with notes on why others were passed over.

    Raises:
        UserError: there is none.
    """
    pointer, notes = Path(work_dir, POINTER), []
    named = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if named:
        # MMEngine notes the path as it was seen when and where training was started.
        beside = Path(work_dir, Path(named).name)
        candidates = [beside if beside.is_file() else Path(named)]
    else:
        notes.append(f'{pointer} is {"empty" if pointer.is_file() else "missing"}')
        candidates = []
    others = {
        file
        for folder in {Path(work_dir), *(path.parent for path in candidates)}
        for file in folder.glob('*.pth')
    }
    candidates += sorted(others - set(candidates), key=os.path.getmtime, reverse=True)
    for path in candidates:
        try:
            check_checkpoint(str(path), resume=True)
        except UserError as error:
            notes.append(f'passed over: {error}')
            continue
        if notes:
            notes.append(f'resuming from {path}, the newest checkpoint that is whole')
        return str(path), notes
    reasons = ''.join(f'\n  {note}' for note in notes)
    raise UserError(
        f'nothing to resume: no usable checkpoint in {os.path.abspath(work_dir)}. '
        f'Leave out --resume to start afresh, or name a file: --resume CKPT{reasons}'
    )


def point_at(work_dir: str, checkpoint: str | None) -> None:
    """Let `last_checkpoint` name this file; without one, let there be none."""
    pointer = os.path.join(work_dir, POINTER)
    if checkpoint:
        put_text(checkpoint if '://' in checkpoint else os.path.abspath(checkpoint), pointer)
    elif os.path.isfile(pointer):
        os.remove(pointer)
