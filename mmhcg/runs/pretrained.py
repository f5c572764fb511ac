"""Where the backbone's first weights come from: a file, a checkpoint of the whole detector, or nowhere."""

from __future__ import annotations

import os
import re
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config

from mmhcg.runs.config import class_name, detector_of, dicts_of, inits_of, parameters_of
from mmhcg.runs.errors import UserError
from mmhcg.runs.preflight import check_checkpoint, hcgnet_of
from mmhcg.weights.fit import check_fit

FROM_SCRATCH_NOTE = (
    'The backbone started from random weights (--no-pretrained), so nothing is frozen and its norms learn: '
)


def find_pretrained(cfg: Config) -> None:
    """Make sure that pretrained files are there; `.pth` stands in for `.safetensors` and vice versa.

    Those of the backbone and those of the whole detector; either must hold all of HCGNet. Addresses such as
    `torchvision://resnet50` are left to MMEngine.

    Raises:
        UserError: a file is missing under both names, or cannot be read.
        CheckpointError: it does not hold all of HCGNet.
    """
    detector, hcgnet = detector_of(cfg), hcgnet_of(cfg)
    for part, prefix in ((detector.backbone, None), (detector, 'backbone')):
        for init in _pretrained(part):
            path = os.path.expanduser(str(init.get('checkpoint')))
            if '://' in path:
                continue
            stem = os.path.splitext(path)[0]
            found = next(filter(os.path.isfile, (path, f'{stem}.safetensors', f'{stem}.pth')), None)
            if found is None:
                arch = hcgnet and detector.backbone.get('arch')
                raise UserError(_missing(path, arch, 'base_batch_size' in (cfg.get('auto_scale_lr') or {})))
            content = check_checkpoint(found)
            if hcgnet:
                check_fit(os.path.abspath(found), content, hcgnet, init.get('prefix', prefix))
            init.checkpoint = found


def drop_pretrained(cfg: Config) -> None:
    """Forget pretrained files, because a checkpoint brings these weights; freezing stays."""
    for part in (detector_of(cfg), detector_of(cfg).backbone):
        if dropped := _pretrained(part):
            part.init_cfg = [init for init in inits_of(part) if init not in dropped] or None


def without_pretrained(cfg: Config) -> Config:
    """A copy of the config that downloads no weights.

    Distillation names its teacher's config relative to MMDetection's folder; that config itself replaces it.
    """
    cfg = deepcopy(cfg)
    for _, node in dicts_of(cfg._cfg_dict):
        for key in ('pretrained', 'load_from', 'teacher_ckpt'):
            if key in node:
                node[key] = None
        inits = inits_of(node)
        if any('checkpoint' in init for init in inits):
            node['init_cfg'] = [init for init in inits if 'checkpoint' not in init] or None
        teacher = node.get('teacher_config')
        if isinstance(teacher, str) and not os.path.isfile(teacher):
            teacher = get_config(teacher.replace('configs/', 'mmdet::', 1))
            node['teacher_config'] = without_pretrained(teacher)._cfg_dict
    return cfg


def start_from_scratch(cfg: Config, backbone_type: Any) -> str:
    """Drop pretrained weights of any kind, unfreeze the backbone and let its norms learn.

    Returns what was done, for the log.
    """
    backbone = detector_of(cfg).backbone
    drop_pretrained(cfg)
    backbone.pop('pretrained', None)  # mmdet's older spelling
    changed = {}
    for option, value in (('frozen_stages', -1), ('norm_eval', False)):
        if option in backbone or option in parameters_of(backbone_type)[0]:
            backbone[option] = changed[option] = value
    if backbone.get('norm_cfg'):
        backbone.norm_cfg.requires_grad = changed['norm_cfg.requires_grad'] = True
    cfg.no_pretrained = True  # travels in the checkpoint, so that a resumed run stays unfrozen
    options = ', '.join(f'{option}={value}' for option, value in changed.items())
    return f'{FROM_SCRATCH_NOTE}{options}.'


def was_started_from_scratch(checkpoint: dict[str, Any]) -> bool:
    """Whether the run that wrote this checkpoint had `--no-pretrained`."""
    # Searched, not parsed: MMEngine reads a config by running it, and a checkpoint must not run code.
    return re.search(r'^no_pretrained = True$', str(checkpoint.get('meta', {}).get('cfg')), re.M) is not None


def _pretrained(part: ConfigDict) -> list[ConfigDict]:
    return [init for init in inits_of(part) if class_name(init) in ('Pretrained', 'PretrainedInit')]


def _missing(path: str, arch: Any, scale: bool) -> str:
    way_out = f'put the weights at {path}'
    if isinstance(arch, str):  # of HCGNet
        files = f'HCGNet_{arch.upper()}_best.pth.tar {os.path.splitext(path)[0]}.safetensors'
        way_out = f"convert the authors' file: mmhcg convert_checkpoint {files}"
    return (
        f'no pretrained weights at {os.path.abspath(path)} (.safetensors or .pth). Either\n  - {way_out}\n'
        '  - or train from random weights, with nothing frozen: add --no-pretrained '
        f'--cfg-options train_dataloader.batch_size=4{" auto_scale_lr.enable=True" if scale else ""}'
    )
