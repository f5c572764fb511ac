"""Which checkpoint a run goes on from: one that is whole, named in the log, or none at all with an error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.fileio import put_text

from mmhcg.runs.errors import UserError
from mmhcg.runs.preflight import check_checkpoint

POINTER = 'last_checkpoint'  # MMEngine's file in the work dir that names the newest checkpoint
INTERRUPTED = 'interrupted.pth'  # PreemptionHook's
SAVED = (POINTER, 'epoch_*.pth', 'iter_*.pth', 'best_*.pth', INTERRUPTED)  # what a run leaves there


class Start(NamedTuple):
    """Where a run starts from."""

    resume: bool
    load_from: str | None  # the checkpoint to resume, else one to take weights from
    checkpoint: dict[str, Any]  # what it holds, if it is to be resumed and lies on a disk
    notes: list[str]  # for the log


def settle_start(resume: bool, load_from: str | None, work_dir: str) -> Start:
    """Find the checkpoint and make sure that it can be resumed, where `resume` or a restart asks for one.

    A run that torchrun or Slurm has started again resumes by itself if it has saved anything yet.

    Raises:
        UserError: there is nothing to resume, or something that a run from its beginning would overwrite.
    """
    if was_restarted() and _saved(work_dir):
        resume, load_from = True, None
    if not resume:
        refuse_to_overwrite(work_dir)
        return Start(False, load_from, {}, [])
    if load_from:
        return Start(True, load_from, check_checkpoint(load_from, resume=True), [])
    return newest_checkpoint(work_dir)


def refuse_to_overwrite(work_dir: str) -> None:
    """Raises UserError where a run from its beginning would write over the checkpoints of another."""
    if saved := _saved(work_dir):
        raise UserError(
            f'{os.path.abspath(work_dir)} holds the checkpoints of an earlier run ({", ".join(saved[:5])}), '
            'which this one would overwrite: go on with that run by --resume, or name another folder by '
            '--work-dir'
        )


def _saved(work_dir: str) -> list[str]:
    return [path.name for pattern in SAVED for path in sorted(Path(work_dir).glob(pattern))]


def settle_seed(start: Start, randomness: dict[str, Any]) -> dict[str, Any]:
    """`randomness` with the seed of the run that is resumed, by which samplers order the images.

    MMEngine takes it up itself, but after it has built the samplers.
    """
    seed, configured = start.checkpoint.get('meta', {}).get('seed'), randomness.get('seed')
    if seed is None or seed == configured:
        return randomness
    if configured is not None:
        start.notes.append(f'the seed is {seed}, that of {start.load_from}, not {configured}')
    return dict(randomness, seed=seed)


def was_restarted() -> bool:
    """Whether torchrun has started this process in the place of one that died, or Slurm requeued the job."""
    return any(int(os.environ.get(f'{name}_RESTART_COUNT', 0)) for name in ('TORCHELASTIC', 'SLURM'))


def restarts_may_fail() -> bool:
    """Whether torchrun is to start processes again with the addresses of the old ones still in its store.

    So it does by default since PyTorch 2.5.
    """
    shared = os.environ.get('TORCH_DISABLE_SHARE_RDZV_TCP_STORE') != '1'
    return shared and int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)) > 0


def newest_checkpoint(work_dir: str) -> Start:
    """The file that `last_checkpoint` names, else the newest one that is whole and holds training state.

    Notes tell why others were passed over.

    Raises:
        UserError: there is none.
    """
    pointer, notes = Path(work_dir, POINTER), []
    named = pointer.read_text(errors='replace').strip() if pointer.is_file() else ''
    if named:
        if '://' in named:
            return Start(True, named, check_checkpoint(named, resume=True), [])
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
        if file.is_file()  # and no link to what is gone
    }
    candidates += sorted(others - set(candidates), key=os.path.getmtime, reverse=True)
    for path in candidates:
        try:
            checkpoint = check_checkpoint(str(path), resume=True)
        except UserError as error:
            notes.append(f'passed over: {error}')
            continue
        if notes:
            notes.append(f'resuming from {path}, the newest checkpoint that is whole')
        return Start(True, str(path), checkpoint, notes)
    reasons = ''.join(f'\n  {note}' for note in notes)
    raise UserError(
        f'nothing to resume: no usable checkpoint in {os.path.abspath(work_dir)}. '
        f'Leave out --resume to start afresh, or name a file: --resume CKPT{reasons}'
    )


def point_at(work_dir: str, checkpoint: str) -> None:
    """Let `last_checkpoint` name this file."""
    pointer = os.path.join(work_dir, POINTER)
    put_text(checkpoint if '://' in checkpoint else os.path.abspath(checkpoint), pointer)
