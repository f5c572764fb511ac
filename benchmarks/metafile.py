"""configs/metafile.yml: the configs in OpenMMLab's form, which MIM reads."""

from __future__ import annotations

from statistics import mean
from typing import Any

import yaml
from records import COCO, SHAPE, SOURCES, mmdet_ap, mmdet_base, scores, sizes

import mmhcg

COLLECTIONS = (
    (
        'HCGNet',
        'Gated Convolutional Networks with Hybrid Connectivity for Image Classification',
        'https://arxiv.org/abs/1908.09699',
    ),
    ('ResNet baselines', 'Deep Residual Learning for Image Recognition', 'https://arxiv.org/abs/1512.03385'),
)


def metafile_results(name: str) -> tuple[str, list[float]]:
    """Source and APs of a config on COCO: measured here, means of a machine's runs, else published."""
    for source in reversed(SOURCES):
        for (data, machine), runs in scores(name, source).items():
            if data == COCO:
                where = f' ({len(runs)} x {machine})' if machine else ''
                return source + where, [round(mean(map(float, aps)), 2) for aps in zip(*runs)]
    if 'hcgnet' not in name:
        return 'MMDetection', list(map(float, mmdet_ap(mmdet_base(name))))
    return 'none: not measured', []


def metafile() -> str:
    """In OpenMMLab's form, which MIM reads."""
    models = []
    for size in sizes():
        name = size['config']
        if name in SHAPE:  # of generated data
            continue
        source, aps = metafile_results(name)
        model: dict[str, Any] = {
            'Name': name,
            'In Collection': 'HCGNet' if 'hcgnet' in name else 'ResNet baselines',
            'Config': f'configs/{name}.py',
            'Metadata': {
                'Parameters': int(size['parameters']),
                'FLOPs': int(size['exact']),
                'Image Size': size['image'],
                'Source of Results': source,
            },
        }
        if aps:
            tasks = (('Object Detection', 'box AP'), ('Instance Segmentation', 'mask AP'))
            model['Results'] = [
                {'Task': task, 'Dataset': 'COCO', 'Metrics': {metric: ap}}
                for (task, metric), ap in zip(tasks, aps)
            ]
        models.append(model)
    collections = [
        {
            'Name': name,
            'Metadata': {
                'Training Data': 'COCO',
                'Architecture': [name.split()[0], 'FPN', 'RPN', 'RoIAlign'],
            },
            'Paper': {'Title': title, 'URL': url},
            'README': 'configs/README.md',
            'Code': {'Version': f'v{mmhcg.__version__}'},
        }
        for name, title, url in COLLECTIONS
    ]
    content = yaml.safe_dump({'Collections': collections, 'Models': models}, sort_keys=False)
    return f'# Written by benchmarks/results_page.py\n{content}'
