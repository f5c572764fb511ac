"""One training or testing run, from a config and the options of the command line to MMEngine's Runner."""

from __future__ import annotations

import os
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mmhcg  # noqa: F401  registers HCGNet and prepares the stack, before anything imports mmdet
from mmhcg.runs import preflight, pretrained
from mmhcg.runs.config import is_classifier, load_config
from mmhcg.runs.data_checks import check_data
from mmhcg.runs.datasets import metrics, move_data
from mmhcg.runs.errors import UserError
from mmhcg.runs.loading import check_loading
from mmhcg.runs.lock import sole_run
from mmhcg.runs.names import check_names
from mmhcg.runs.places import check_file, check_folder, refuse_empty
from mmhcg.runs.processes import check_launcher
from mmhcg.runs.resuming import refuse_to_overwrite, settle_seed, settle_start
from mmhcg.weights.fit import check_fit, state_of

# Seconds that processes wait for one that is gone, and for the one that evaluates COCO while they wait.
TIMEOUT = 1800
SAFE_RUN = 'mmhcg::_base_/safe_run.py'

_run_numbers = count()


def train(
    config: str | Path | Config,
    work_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    resume: bool | str | Path = False,
    amp: bool = False,
    seed: int | None = None,
    no_pretrained: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> Runner:
    """Train the config's detector or classifier; returns the Runner that did.

    Args:
        config: A config file, or a Config, which is left as it is.
        work_dir: For logs and checkpoints; default: the config's, else `work_dirs/<name of the config file>`.
        data_root: A folder that replaces the config's data: in COCO's layout, or in ImageNet's or CIFAR's.
        resume: True goes on from the newest checkpoint in the work dir, a file name from that file.
        amp: Mixed precision with dynamic loss scaling.
        seed: For Python, NumPy and PyTorch.
        no_pretrained: Start from random weights and freeze nothing.
        cfg_options: Replaces config entries: {'train_cfg.max_epochs': 3}.
        launcher: 'none', or what started several processes: 'pytorch', 'slurm', 'mpi'.

    Raises:
        UserError: what was given cannot work; nothing has been started or written.
    """
    refuse_empty('--resume', resume)
    cfg = _load(config, cfg_options, work_dir, data_root, launcher)
    backbone_type = preflight.check_backbone(cfg)
    preflight.check_parts(cfg, 'train')
    check_names(cfg, ('train', 'val'))
    if amp:
        cfg.merge_from_dict({'optim_wrapper': dict(type='AmpOptimWrapper', loss_scale='dynamic')})
    preflight.check_amp(cfg)
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    preflight.check_seed(cfg)
    preflight.check_model(cfg)
    if resume:
        cfg.resume, cfg.load_from = True, None if resume is True else str(resume)
    content, notes = _choose_weights(cfg, backbone_type, no_pretrained)
    notes += preflight.settle_batches(cfg)
    notes += check_data(cfg, ('train', 'val'))
    notes += _make_safe(cfg)
    with sole_run(cfg.work_dir, launcher):  # before the Runner writes its first file
        if not cfg.resume:
            refuse_to_overwrite(cfg.work_dir)  # what another run has saved since
        runner = _build_runner(cfg)
        if content:
            check_loading(cfg, content, runner)
        del content  # it is as large as what the run will load
        runner.start_is_settled = True
        for note in notes:
            runner.logger.warning(note)
        runner.train()
    return runner


def test(
    config: str | Path | Config,
    checkpoint: str | Path,
    data_root: str | Path | None = None,
    out: str | Path | None = None,
    show_dir: str | Path | None = None,
    work_dir: str | Path | None = None,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> dict[str, float]:
    """Score a checkpoint; returns the numbers by name.

    A detector by the twelve COCO numbers for each of box and mask, a classifier by its top-1 and top-5.

    Args:
        config: A config file, or a Config, which is left as it is.
        checkpoint: The model's weights.
        data_root: A folder that replaces the config's data: in COCO's layout, or in ImageNet's or CIFAR's.
        out: Write the predictions to this .pkl file.
        show_dir: Draw every image into this folder, ground truth on the left, detections on the right. Of
            detectors alone.
        work_dir: For the log; default: the config's, else `work_dirs/<name of the config file>`.
        cfg_options: Replaces config entries.
        launcher: 'none', or what started several processes: 'pytorch', 'slurm', 'mpi'.

    Raises:
        UserError: what was given cannot work; nothing has been started or written.
    """
    cfg = _load(config, cfg_options, work_dir, data_root, launcher)
    if out is not None and not str(out).endswith(('.pkl', '.pickle')):
        raise UserError(f'--out must end in .pkl or .pickle, not {out}')
    check_file('--out', out)
    if show_dir is not None and is_classifier(cfg):
        raise UserError('--show-dir draws detections, and a classifier has none: leave it out')
    check_folder('--show-dir', show_dir)
    preflight.check_backbone(cfg)
    preflight.check_parts(cfg, 'test')
    check_names(cfg, ('test',))
    checkpoint = str(checkpoint)
    model, content = preflight.check_model(cfg), preflight.check_checkpoint(checkpoint)
    if content:
        check_fit(os.path.abspath(checkpoint), content, model)
    del model, content  # they may be large
    notes = check_data(cfg, ('test',))
    pretrained.drop_pretrained(cfg)
    cfg.load_from, cfg.resume = checkpoint, False
    if show_dir is not None:
        # Absolute, because the hook joins its folder to a relative one anew for every image.
        show = {'type': 'DetVisualizationHook', 'draw': True, 'test_out_dir': os.path.abspath(show_dir)}
        cfg.merge_from_dict({'default_hooks.visualization': show})
    notes += _make_safe(cfg)
    runner = _build_runner(cfg)
    for note in notes:
        runner.logger.warning(note)
    if out is not None:
        _keep_predictions(runner, cfg, out)
    return runner.test()


def _load(
    config: str | Path | Config,
    cfg_options: dict[str, Any] | None,
    work_dir: str | Path | None,
    data_root: str | Path | None,
    launcher: str,
) -> Config:
    refuse_empty('--data-root', data_root)
    check_folder('--work-dir', work_dir)
    check_launcher(launcher)
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(cfg.filename or 'run').stem)
    if data_root is not None:
        move_data(cfg, str(data_root), cfg_options)
    return cfg


def _make_safe(cfg: Config) -> list[str]:
    """Add what `configs/_base_/safe_run.py` says, unless the config has it; returns what to log."""
    safe = load_config(SAFE_RUN)
    if cfg.get('runner_type', safe.runner_type) != safe.runner_type:
        return [f"runner_type={cfg.runner_type!r} is the config's own: {SAFE_RUN} does not apply to it."]
    for key, value in safe.items():
        if key not in cfg:
            cfg[key] = value
    return []


def _choose_weights(cfg: Config, backbone_type: Any, no_pretrained: bool) -> tuple[dict[str, Any], list[str]]:
    """Decide where the first weights come from, and what is resumed.

    Returns the content of the checkpoint that the run will load, and what to log.
    """
    start = settle_start(cfg.get('resume', False), cfg.get('load_from'), cfg.work_dir)
    cfg.resume, cfg.load_from, checkpoint, notes = start
    cfg.randomness = settle_seed(start, cfg.get('randomness') or {'seed': None})
    if cfg.load_from and not cfg.resume:
        checkpoint = preflight.check_checkpoint(cfg.load_from)
    if no_pretrained or (cfg.resume and pretrained.was_started_from_scratch(checkpoint)):
        return checkpoint, [*notes, pretrained.start_from_scratch(cfg, backbone_type)]
    if cfg.load_from:
        # Wrappers have names of their own for what they wrap
        if checkpoint and 'detector' not in cfg.model and (hcgnet := preflight.hcgnet_of(cfg)):
            check_fit(os.path.abspath(cfg.load_from), state_of(checkpoint), hcgnet, 'backbone')
        pretrained.drop_pretrained(cfg)
    else:
        pretrained.find_pretrained(cfg)
    return checkpoint, notes


def _build_runner(cfg: Config) -> Runner:
    cfg.setdefault('brief_screen', True)
    cfg.env_cfg = cfg.get('env_cfg') or {}
    cfg.env_cfg.setdefault('dist_cfg', {}).setdefault('timeout', TIMEOUT)
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        _join_cpu_processes(cfg)
    from mmhcg.runs.coco_metric import use_twelve_numbers

    use_twelve_numbers(metrics(cfg, 'val') + metrics(cfg, 'test'))
    # MMEngine keeps one visualizer per name: a second run would write into the first one's folder.
    if cfg.get('visualizer'):
        cfg.visualizer.name = f'visualizer_{next(_run_numbers)}'
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _keep_predictions(runner: Runner, cfg: Config, out: str | Path) -> None:
    from mmdet.evaluation import DumpDetResults
    from mmengine.evaluator import DumpResults

    dump = DumpResults if is_classifier(cfg) else DumpDetResults
    runner.test_evaluator.metrics.append(dump(out_file_path=str(out)))


def _join_cpu_processes(cfg: Config) -> None:
    """torchrun without GPUs, which MMEngine's own launcher does not provide for."""
    if not torch.distributed.is_initialized():
        timeout = timedelta(seconds=cfg.env_cfg.dist_cfg.timeout)
        torch.distributed.init_process_group('gloo', timeout=timeout)
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
