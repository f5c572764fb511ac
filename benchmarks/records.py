"""What is known of the configs, by benchmarks/results: sizes as counted, scores as published or measured."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import mmdet
import yaml

from mmhcg.analysis.complexity import count_complexity
from mmhcg.analysis.tables import read_table
from mmhcg.runs.config import build_detector, load_config
from mmhcg.runs.pretrained import without_pretrained
from mmhcg.swap import swap_backbone

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / 'configs', ROOT / 'benchmarks' / 'results'
COMPLEXITY = RESULTS / 'complexity.csv'
MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
LARGE = ('mask_rcnn_hcgnet_c_fpn_1x_coco',)  # of R-101's size, so that R-101 is its baseline
SOURCES = ('paper', 'measured here')  # that a row of results may name
COCO = 'COCO val2017'
SWAPS = RESULTS / 'swaps.csv'
SWAPPED = (  # docs/swap.md's examples
    'retinanet/retinanet_r50_fpn_1x_coco',
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco',
    'yolox/yolox_s_8xb8-300e_coco',
)
SHAPE = {'mask_rcnn_hcgnet_demo_shapes': (96, 96)}  # of the image that is counted; 800x1280 for COCO


def names() -> list[str]:
    """Configs, those of HCGNet first."""
    return sorted((path.stem for path in CONFIGS.glob('*.py')), key=lambda name: ('hcgnet' not in name, name))


def count(name: str) -> dict[str, Any]:
    """The row of complexity.csv for a config."""
    height, width = SHAPE.get(name, (800, 1280))
    parts = count_complexity(build_detector(CONFIGS / f'{name}.py'), (height, width))
    fields = ('parameters', 'trainable', 'exact', 'paper', 'activations')
    sums = {field: sum(getattr(part, field) for part in parts) for field in fields}
    backbone = sum(part.exact for part in parts if part.name.startswith('backbone'))
    return dict(config=name, image=f'{height}x{width}', **sums, backbone_exact=backbone)


def count_swapped(name: str) -> dict[str, Any]:
    """The row of swaps.csv for a config of MMDetection's: its detector before and after the swap."""
    old = without_pretrained(load_config(f'mmdet::{name}.py'))
    row: dict[str, Any] = dict(config=name, image='800x1280')
    for when, cfg in (('before', old), ('now', swap_backbone(old))):
        parts = count_complexity(build_detector(cfg), (800, 1280))
        for field in ('parameters', 'exact'):
            row[f'{field}_{when}'] = sum(getattr(part, field) for part in parts)
    return row


def sizes() -> list[dict[str, str]]:
    """Rows of complexity.csv; exits where they are not those of the configs."""
    rows = read_table(COMPLEXITY)
    if differing := {row['config'] for row in rows} ^ set(names()):
        sys.exit(
            f'{COMPLEXITY.name} and the configs differ in {", ".join(sorted(differing))}: '
            'python benchmarks/results_page.py --count'
        )
    return rows


def results() -> list[dict[str, str]]:
    """Rows of the files that tell box APs, the paper's first: all that pages say of APs but MMDetection's.

    Exits with file, line and reason where a row does not say what it is of.
    """
    rows = []
    for path in sorted(RESULTS.glob('*.csv')):
        for line, row in enumerate(read_table(path), 2):
            if 'box_ap' not in row:  # a file of other numbers
                continue
            wanted = ['source', 'config', 'data', 'box_ap']
            wanted += ['machine'] if row.get('source') == 'measured here' else []
            if lacking := [title for title in wanted if not row.get(title)]:
                sys.exit(f'{path.name}, line {line}: no {", ".join(lacking)}')
            for title, known in (('source', SOURCES), ('config', names())):
                if row[title] not in known:
                    what = f'{path.name}, line {line}: {title} {row[title]!r}'
                    sys.exit(f'{what} is none of {", ".join(known)}')
            rows.append(row)
    return sorted(rows, key=lambda row: SOURCES.index(row['source']))


def scores(name: str, source: str) -> dict[tuple[str, str], list[tuple[str, ...]]]:
    """What a source says of a config: (data, machine) -> of each run box AP and, with masks, mask AP."""
    found = defaultdict(list)
    for row in results():
        if (row['config'], row['source']) == (name, source):
            aps = (row['box_ap'], row.get('mask_ap'))
            found[row['data'], row.get('machine') or ''].append(tuple(ap for ap in aps if ap))
    return found


def mmdet_base(name: str) -> str:
    """MMDetection's config that a config of ours comes from, e.g. 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'."""
    text = (CONFIGS / f'{name}.py').read_text(encoding='utf-8')
    (base,) = re.findall(r"^_base_ = '(.+)\.py'$", text, re.M)
    return base.removeprefix('mmdet::') if base.startswith('mmdet::') else mmdet_base(base)


def mmdet_ap(base: str) -> tuple[str, ...]:
    """Box AP, and mask AP where there is one, that MMDetection publishes for a config of its own."""
    family, name = base.split('/')
    metafile = yaml.safe_load((MMDET_CONFIGS / family / 'metafile.yml').read_text(encoding='utf-8'))
    model = next(model for model in metafile['Models'] if model['Name'] == name)
    metrics = {key: value for result in model['Results'] for key, value in result['Metrics'].items()}
    return tuple(str(metrics[key]) for key in ('box AP', 'mask AP') if key in metrics)
