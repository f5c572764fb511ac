"""Write the pages of results from benchmarks/results and the configs: python benchmarks/results_page.py

`--check` writes nothing and fails where a page is out of date. `--count` counts every config's parameters and
multiply-adds anew first, which takes a minute or two.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import mmdet
import yaml
from mmengine.config import Config

import mmhcg
from mmhcg.analysis.complexity import count_complexity
from mmhcg.runs.config import build_detector

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS = ROOT / 'configs', ROOT / 'benchmarks' / 'results'
COMPLEXITY = RESULTS / 'complexity.csv'
MMDET_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
LARGE = ('mask_rcnn_hcgnet_c_fpn_1x_coco',)  # of R-101's size, so that R-101 is its baseline
SHAPE = {'mask_rcnn_hcgnet_demo_shapes': (96, 96)}  # of the image that is counted; 800x1280 for COCO


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


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


def write_complexity() -> None:
    rows = [count(name) for name in names()]
    with COMPLEXITY.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def mmdet_base(name: str) -> str:
    """MMDetection's config that a config of ours comes from, e.g. 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'."""
    base = re.search(r"^_base_ = '(.+)\.py'$", (CONFIGS / f'{name}.py').read_text(encoding='utf-8'), re.M)[1]
    return base.removeprefix('mmdet::') if base.startswith('mmdet::') else mmdet_base(base)


def mmdet_ap(base: str) -> tuple[str, ...]:
    """Box AP, and mask AP where there is one, that MMDetection publishes for a config of its own."""
    family, name = base.split('/')
    metafile = yaml.safe_load((MMDET_CONFIGS / family / 'metafile.yml').read_text(encoding='utf-8'))
    model = next(model for model in metafile['Models'] if model['Name'] == name)
    metrics = {key: value for result in model['Results'] for key, value in result['Metrics'].items()}
    return tuple(str(metrics[key]) for key in ('box AP', 'mask AP') if key in metrics)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def readme_table() -> str:
    """README's: what the paper printed and what was measured."""
    titles = ('source', 'what', 'data', 'parameters', 'multiply_adds', 'box_ap', 'mask_ap', 'machine')
    rows = read(RESULTS / 'paper_coco.csv') + read(RESULTS / 'demo.csv')
    head = [title.replace('_ap', ' AP').replace('multiply_', 'multiply-') for title in titles]
    return table(head, [[row.get(title) or '' for title in titles] for row in rows])


def config_table() -> str:
    paper = {row['config']: row for row in read(RESULTS / 'paper_coco.csv')}
    rows = []
    for size in read(COMPLEXITY):
        name = size['config']
        published = paper.get(name)
        coco = name not in SHAPE
        base = mmdet_base(name).replace('r50', 'r101') if name in LARGE else mmdet_base(name)
        rows.append(
            [
                f'[`{name}`]({name}.py)',
                f'{int(size["trainable"]) / 1e6:.2f} M of {int(size["parameters"]) / 1e6:.2f} M',
                *(f'{int(size[field]) / 1e9:.2f} G' for field in ('exact', 'backbone_exact', 'paper')),
                f'{published["box_ap"]} / {published["mask_ap"]}' if published else '',
                f'{" / ".join(mmdet_ap(base))} (`{base.split("/")[1]}`)' if coco and not published else '',
                measured(name),
            ]
        )
    head = (
        'config',
        'parameters: trainable of all',
        'multiply-adds',
        'backbone alone',
        "by the paper's counter",
    )
    head += ('paper: box / mask AP', "MMDetection's baseline: box / mask AP", 'measured here: box / mask AP')
    return table(head, rows)


def measured(name: str) -> str:
    """What the files of results say of a config, each with its data and machine."""
    rows = [row for path in sorted(RESULTS.glob('*.csv')) for row in read(path) if row.get('config') == name]
    runs = defaultdict(list)
    for row in rows:
        if row.get('source') == 'measured here' and row.get('box_ap'):
            runs[f'{row["data"]}; {row["machine"]}'].append(f'{row["box_ap"]} / {row["mask_ap"]}')
    return '; '.join(f'{", ".join(scores)} ({where})' for where, scores in runs.items()) or 'not measured'


def recipe_table() -> str:
    """Each setting of the published experiment as its authors, we and MMDetection have it."""
    configs = [
        Config.fromfile(path)
        for path in (
            CONFIGS / 'mask_rcnn_hcgnet_b_fpn_1x_coco_paper.py',
            MMDET_CONFIGS / 'mask_rcnn' / 'mask-rcnn_r50_fpn_1x_coco.py',
        )
    ]
    rows = []
    for row in read(ROOT / 'benchmarks' / 'paper_recipe.csv'):
        values = [shown(value(config, row['path'])) for config in configs]
        rows.append([row['setting'], row['authors'], *values, f'`{row["path"]}`', row['difference']])
    return table(('setting', 'authors (v1.0rc0)', 'ours', "MMDetection 3's", 'in the config', 'remark'), rows)


def value(config: Config, path: str) -> Any:
    """What a dotted path leads to, numbers for items of lists; None where it leads nowhere."""

    def step(node: Any, key: str) -> Any:
        return node[int(key)] if isinstance(node, list) else (node or {}).get(key)

    return reduce(step, path.split('.'), config)


def shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ', '.join(map(shown, value))
    if isinstance(value, float):
        return f'{value:.4g}'
    return 'none' if value is None else str(value)


COLLECTIONS = (
    (
        'HCGNet',
        'Gated Convolutional Networks with Hybrid Connectivity for Image Classification',
        'https://arxiv.org/abs/1908.09699',
    ),
    ('ResNet baselines', 'Deep Residual Learning for Image Recognition', 'https://arxiv.org/abs/1512.03385'),
)


def metafile() -> str:
    """In OpenMMLab's form, which MIM reads."""
    published = {
        row['config']: ('paper', row['box_ap'], row['mask_ap']) for row in read(RESULTS / 'paper_coco.csv')
    }
    models = []
    for size in read(COMPLEXITY):
        name = size['config']
        if name in SHAPE:  # of generated data
            continue
        if 'hcgnet' not in name and name not in published:
            published[name] = ('MMDetection', *mmdet_ap(mmdet_base(name)))
        source, *scores = published.get(name, ('none: not measured',))
        model = {
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
        if scores:
            tasks = (('Object Detection', 'box AP'), ('Instance Segmentation', 'mask AP'))
            model['Results'] = [
                {'Task': task, 'Dataset': 'COCO', 'Metrics': {metric: float(score)}}
                for (task, metric), score in zip(tasks, scores)
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


TABLES = {'results': readme_table, 'configs': config_table, 'recipe': recipe_table}
MARKS = re.compile(r'(<!-- begin: (\w+) .*?-->\n).*?(<!-- end: \2 -->)', re.S)


def pages() -> dict[Path, str]:
    """What each file should hold; in text, what stands between two marks of a table."""
    filled = {
        path: MARKS.sub(lambda mark: mark[1] + TABLES[mark[2]]() + mark[3], path.read_text(encoding='utf-8'))
        for path in (ROOT / 'README.md', CONFIGS / 'README.md')
    }
    return {**filled, CONFIGS / 'metafile.yml': metafile()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description='Write the pages of results.')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail where a page is out of date'
    )
    parser.add_argument('--count', action='store_true', help='count parameters and multiply-adds anew first')
    options = parser.parse_args(argv)
    if options.count:
        write_complexity()
    for path, text in pages().items():
        old = path.read_text(encoding='utf-8') if path.exists() else None
        if options.check and old != text:
            sys.exit(f'{path.relative_to(ROOT)} is out of date: python benchmarks/results_page.py')
        if not options.check:
            path.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
