"""A detector on photographs: what it found, and what HCGNet did to find it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from torch.nn import Module

from mmhcg.analysis.gate_pictures import Photo, save_attention, save_features, save_forget_gates
from mmhcg.analysis.looking import find_trunk, looking
from mmhcg.analysis.tables import write_rows
from mmhcg.runs.config import build_detector, load_config
from mmhcg.runs.datasets import leaf_datasets
from mmhcg.runs.errors import UserError
from mmhcg.runs.preflight import check_checkpoint
from mmhcg.weights.fit import load_weights

SIDE = 512  # detections are drawn on a photograph of at least so many pixels: labels need room


def visualize(
    config: str | Path | Config,
    checkpoint: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    score_thr: float = 0.3,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Draw pictures of each image into a new folder `out/NAME`; returns these folders.

    In each, with a CSV of the same name beside every picture: detections.png, attention_stage1.png and so on,
    forget_gates.png, features.png.

    Args:
        config: A config file, or a Config, of a detector on HCGNet.
        checkpoint: The detector's weights.
        images: Files.
        out: Folder for the folders.
        score_thr: Only detections above this score are drawn and listed.
        progress: Is told what is going on.

    Raises:
        UserError, CheckpointError: What was given cannot work; nothing has been written.
    """
    folders = _folders(images, Path(out))
    for image in images:
        _read(image)  # and forget it: there may be more of them than fit into memory
    progress('building the detector')
    model = load_detector(config, str(checkpoint))
    for number, (image, folder) in enumerate(zip(images, folders), 1):
        which = f'image {number} of {len(folders)}, {Path(image).name}: '
        _draw(model, str(image), folder, score_thr, partial(_say, progress, which))
    return folders


def _say(progress: Callable[[str], None], which: str, what: str) -> None:
    progress(which + what)


def load_detector(config: str | Path | Config, checkpoint: str) -> Module:
    """The config's detector with these weights, ready for mmdet's `inference_detector`.

    Raises UserError where its backbone is no HCGNet or it has no test data to take class names from, and
    CheckpointError where the weights are not those of this detector.
    """
    from mmengine.device import get_device

    cfg = load_config(config)
    content = check_checkpoint(checkpoint, fetch=True)
    model = build_detector(cfg)
    if find_trunk(model) is None:
        backbone = type(getattr(model, 'backbone', model)).__name__
        raise UserError(
            f'{cfg.filename or "the config"} has no HCGNet, whose gates to look at, but {backbone}'
        )
    load_weights(checkpoint, content, model)
    model.dataset_meta = _dataset_meta(cfg)
    model.cfg = cfg
    return model.to(get_device()).eval()


def _dataset_meta(cfg: Config) -> dict[str, Any]:
    from mmdet.registry import DATASETS

    dataset = next(leaf_datasets(cfg, 'test'), None)
    if dataset is None:
        raise UserError(f'{cfg.filename or "the config"} has no `test_dataloader` to take class names from')
    meta = DATASETS.build(dict(dataset, lazy_init=True)).metainfo
    palette = meta.get('palette')
    return dict(meta, palette='random' if palette is None else palette)


def _folders(images: Sequence[str | Path], out: Path) -> list[Path]:
    folders = [out / Path(image).stem for image in images]
    for image, folder in zip(images, folders):
        if folders.count(folder) > 1:
            raise UserError(
                f'{image}: another image has the same name, and both would be drawn into {folder}'
            )
        if folder.exists():
            raise UserError(f'{folder.resolve()} is there already: name another folder by --out')
    return folders


def _read(image: str | Path) -> np.ndarray:
    """A photograph (H, W, 3), RGB."""
    import mmcv

    if not os.path.isfile(image):
        instead = ', but a folder: name the files in it' if os.path.isdir(image) else ''
        raise UserError(f'no image at {os.path.abspath(image)}{instead}')
    try:
        return mmcv.imread(str(image), channel_order='rgb')
    except Exception as error:  # decoders fail in many ways, and say so in many lines
        raise UserError(
            f'{os.path.abspath(image)} is no image or a damaged one: put a whole one there, or leave it out'
        ) from error


def _draw(model: Module, image: str, folder: Path, score_thr: float, progress: Callable[[str], None]) -> None:
    from mmdet.apis import inference_detector

    progress('detecting')
    pixels, trunk = _read(image), find_trunk(model)
    assert trunk is not None  # load_detector has looked
    with looking(trunk) as look:
        sample = inference_detector(model, image)
    folder.mkdir(parents=True)
    progress('drawing detections')
    _draw_detections(model, sample.cpu(), pixels, folder / 'detections.png', score_thr)
    photo = Photo(pixels, tuple(sample.img_shape[:2]))
    for stage in sorted({module.stage for module in look.modules}):
        progress(f'drawing where the gates of stage {stage} look')
        modules = [module for module in look.modules if module.stage == stage]
        save_attention(modules, photo, folder / f'attention_stage{stage}.png')
    progress('drawing what the forget gates keep, and what the stages see')
    save_forget_gates(look.modules, folder / 'forget_gates.png')
    save_features(look, photo, folder / 'features.png')


def _draw_detections(model: Module, sample: Any, pixels: np.ndarray, path: Path, score_thr: float) -> None:
    """By mmdet's own visualizer. Small photographs are enlarged first, and what was found with them."""
    from mmdet.visualization import DetLocalVisualizer

    found = sample.pred_instances = sample.pred_instances[sample.pred_instances.scores > score_thr]
    classes = model.dataset_meta['classes']
    columns = ('label', 'score', 'x1', 'y1', 'x2', 'y2')
    rows = [
        dict(zip(columns, (classes[label], round(score, 4), *(round(value, 1) for value in box))))
        for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist())
    ]
    write_rows(rows, path.with_suffix('.csv'), columns)
    zoom = -(-SIDE // max(pixels.shape[:2]))
    found.bboxes = found.bboxes * zoom
    if 'masks' in found:
        found.masks = found.masks.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    visualizer = DetLocalVisualizer(line_width=2, alpha=0.45)
    visualizer.dataset_meta = model.dataset_meta
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*out of bounds')  # of boxes that touch the border
        visualizer.add_datasample(
            path.stem,
            pixels.repeat(zoom, 0).repeat(zoom, 1),
            sample,
            draw_gt=False,
            pred_score_thr=score_thr,
            out_file=str(path),
        )
