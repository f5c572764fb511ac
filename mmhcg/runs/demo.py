"""The demo: make a set of shapes, train on it, score what came out on held-out images, draw what it found."""

from __future__ import annotations

import json
import pickle
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import find_latest_checkpoint

from mmhcg.data import make_shapes
from mmhcg.runs import lock
from mmhcg.runs.demo_pictures import draw_pictures
from mmhcg.runs.errors import UserError
from mmhcg.runs.launch import test, train
from mmhcg.runs.places import check_folder

IMAGES, VAL_IMAGES = 2000, 200
SIZE = 96  # pixels; the config's anchors and test pipeline are made for it
PICTURES = 8
EARLIER = 'earlier_'  # + number: what a previous demo left


def run_demo(
    config: str | Path,
    work_dir: str | Path = 'work_dirs/demo',
    seed: int = 0,
    images: int = IMAGES,
    val_images: int = VAL_IMAGES,
    cfg_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the whole demo in `work_dir`; returns what it writes to `scores.json`.

    What an earlier demo left in `work_dir` is moved to `earlier_1`, `earlier_2`, ...; its data stay in use.

    Args:
        config: The recipe, a config of a detector for the classes of `mmhcg.data`.
        work_dir: For data, log, checkpoint, scores and pictures.
        seed: Of the data and of the training.
        images: Generated images to train on.
        val_images: Generated images to score on, none of which was trained on.
        cfg_options: Replaces config entries.
    """
    check_folder('--work-dir', work_dir)
    work_dir, started = Path(work_dir), time.time()
    _make_room(work_dir)
    data = work_dir / 'data' / f'shapes_{images}_{val_images}_{SIZE}_seed_{seed}'
    print(f'making {images} + {val_images} images of shapes in {data}', flush=True)
    try:
        make_shapes(data, images, seed, val_images=val_images, size=SIZE)
    except (FileExistsError, ValueError) as error:
        raise UserError(str(error)) from error
    made = time.time()

    cfg = Config.fromfile(config)
    cfg.merge_from_dict(cfg_options or {})
    print(f'training for {cfg.train_cfg.max_iters} iterations; the log is in {work_dir}', flush=True)
    runner = train(_without_validation(cfg), work_dir=str(work_dir), data_root=str(data), seed=seed)
    log = work_dir / runner.timestamp / f'{runner.timestamp}.log'
    trained = time.time()

    checkpoint = work_dir / Path(find_latest_checkpoint(str(work_dir))).name
    predictions = work_dir / 'predictions.pkl'
    found = test(cfg, checkpoint, data_root=str(data), out=str(predictions), work_dir=str(work_dir))
    tested = time.time()

    pictures = work_dir / 'pictures'
    with predictions.open('rb') as file:
        draw_pictures(pickle.load(file), data, pictures, PICTURES)
    scores: dict[str, Any] = {name.removeprefix('coco/'): value for name, value in found.items()}
    steps = dict(data=made - started, train=trained - made, test=tested - trained, all=time.time() - started)
    seconds = {step: round(duration, 1) for step, duration in steps.items()}
    scores.update(seed=seed, iterations=runner.iter, seconds=seconds)
    (work_dir / 'scores.json').write_text(json.dumps(scores, indent=1) + '\n')
    _say_where(scores, log, checkpoint, work_dir)
    return scores


def _make_room(work_dir: Path) -> None:
    """Move what an earlier demo left in `work_dir` aside, its data excepted.

    Raises UserError where `work_dir` holds something that is not from a demo, or one still trains there.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        (work_dir / 'data').rmdir()  # empty, where an earlier demo was stopped before it had any
    found = [path for path in work_dir.iterdir() if path.name != lock.NAME]
    if found and not any(work_dir.glob('data/shapes_*/shapes.json')):
        raise UserError(f'{work_dir} holds files that are not from a demo: name another folder by --work-dir')
    old = [path for path in found if path.name != 'data' and not path.name.startswith(EARLIER)]
    if not old:
        return
    with lock.sole_run(str(work_dir)):
        number = 1
        while (work_dir / f'{EARLIER}{number}').exists():
            number += 1
        aside = work_dir / f'{EARLIER}{number}'
        aside.mkdir()
        for path in old:
            path.rename(aside / path.name)
    print(f'{work_dir} held an earlier demo: moved to {aside}', flush=True)


def _without_validation(cfg: Config) -> Config:
    """A copy that only trains: the demo scores the last checkpoint itself, and once is enough."""
    cfg = cfg.copy()
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    return cfg


def _say_where(scores: dict[str, Any], log: Path, checkpoint: Path, work_dir: Path) -> None:
    print(
        f'\nHCGNet on held-out shapes: box AP {scores["bbox_mAP"]:.3f}, mask AP {scores["segm_mAP"]:.3f} '
        f'after {scores["iterations"]} iterations and {scores["seconds"]["all"] / 60:.1f} minutes\n'
        f'  log         {log}\n'
        f'  checkpoint  {checkpoint}\n'
        f'  scores      {work_dir / "scores.json"}\n'
        f'  pictures    {work_dir / "pictures"}, all of them in overview.png',
        flush=True,
    )
