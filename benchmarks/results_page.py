"""Write the pages of results from benchmarks/results and the configs: python benchmarks/results_page.py

`--check` writes nothing and fails where a page is out of date. `--count` counts every config's parameters and
multiply-adds anew first, which takes a minute or two.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path
from statistics import mean
from typing import Any

import mmdet
import yaml
from mmengine.config import Config

import mmhcg
from mmhcg.analysis.complexity import count_complexity
from mmhcg.analysis.rehearsal import without_pretrained
from mmhcg.runs.config import build_detector, load_config
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


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by the titles of its columns."""
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


def count_swapped(name: str) -> dict[str, Any]:
    """The row of swaps.csv for a config of MMDetection's: its detector before and after the swap."""
    old = without_pretrained(load_config(f'mmdet::{name}.py'))
    row: dict[str, Any] = dict(config=name, image='800x1280')
    for when, cfg in (('before', old), ('now', swap_backbone(old))):
        parts = count_complexity(build_detector(cfg), (800, 1280))
        for field in ('parameters', 'exact'):
            row[f'{field}_{when}'] = sum(getattr(part, field) for part in parts)
    return row


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows as a CSV file."""
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, rows[0], lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)


def sizes() -> list[dict[str, str]]:
    """Rows of complexity.csv; exits where they are not those of the configs."""
    rows = read(COMPLEXITY)
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
        for line, row in enumerate(read(path), 2):
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
    """A table in Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def readme_table() -> str:
    """README's: what the paper printed and what was measured."""
    titles = ('source', 'what', 'data', 'parameters', 'multiply_adds', 'box_ap', 'mask_ap', 'machine')
    head = [title.replace('_ap', ' AP').replace('multiply_', 'multiply-') for title in titles]
    return table(head, [[row.get(title) or '' for title in titles] for row in results()])


def config_table() -> str:
    """Each config with its size and what is known of its APs, by source."""
    rows = []
    for size in sizes():
        name = size['config']
        published = [shown_aps(aps) for runs in scores(name, 'paper').values() for aps in runs]
        coco = name not in SHAPE
        base = mmdet_base(name).replace('r50', 'r101') if name in LARGE else mmdet_base(name)
        rows.append(
            [
                f'[`{name}`]({name}.py)',
                f'{int(size["trainable"]) / 1e6:.2f} M of {int(size["parameters"]) / 1e6:.2f} M',
                *(f'{int(size[field]) / 1e9:.2f} G' for field in ('exact', 'backbone_exact', 'paper')),
                ', '.join(published),
                f'{shown_aps(mmdet_ap(base))} (`{base.split("/")[1]}`)' if coco and not published else '',
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


def shown_aps(aps: Sequence[str]) -> str:
    """Box AP, and mask AP where there is one."""
    return ' / '.join(aps)


def measured(name: str) -> str:
    """What was measured of a config, each with its data and machine."""
    runs = scores(name, 'measured here').items()
    texts = [f'{", ".join(map(shown_aps, aps))} ({data}; {machine})' for (data, machine), aps in runs]
    return '; '.join(texts) or 'not measured'


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
    """A value of a config as a cell."""
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


def performance_table(model: str = 'backbone') -> str:
    """Networks side by side, as `tools/benchmark.py` measured them."""
    titles = {'phase': 'phase', 'mode': 'mode', 'candidate': 'network', 'saved_mb': 'MB kept for backward'}
    titles |= {'operators': 'operators', 'moved_mb': 'MB moved', 'best_ms': 'ms', 'to_plain': 'time to plain'}
    titles |= {'to_r50': 'time to R-50', 'shape': 'images', 'machine': 'machine', 'software': 'software'}
    rows = [row for row in read(RESULTS / 'backbones.csv') if row['model'] == model]
    if not rows:
        options = '' if model == 'backbone' else '--detector '
        command = f'python tools/benchmark.py {options}--csv benchmarks/results/backbones.csv'
        sys.exit(f'backbones.csv has no row of a {model}: {command}')
    titles = {key: title for key, title in titles.items() if any(row[key] for row in rows)}
    return table(list(titles.values()), [[row[title] for title in titles] for row in rows])


def swaps_table() -> str:
    """docs/swap.md's examples, before and after."""
    head = ('', 'parameters before', 'now', 'multiply-adds before', 'now')
    rows = []
    for row in read(SWAPS):
        sizes = [
            f'{int(row[f"{field}_{when}"]) / scale:.2f} {unit}'
            for field, scale, unit in (('parameters', 1e6, 'M'), ('exact', 1e9, 'G'))
            for when in ('before', 'now')
        ]
        rows.append([f'`{row["config"]}`', *sizes])
    return table(head, rows)


def zoo_table() -> str:
    """How far the swap reaches, as `tools/swap_zoo.py` found it."""
    rows = read(RESULTS / 'zoo.csv')
    statuses = Counter(row['status'] for row in rows)
    families = defaultdict(list)
    for row in rows:
        if row['built'] == 'ok':
            families[row['config'].split('/')[0]].append(row)
    run = {
        field: {name for name, members in families.items() if any(row[field] == 'ok' for row in members)}
        for field in ('control', 'swapped')
    }
    counts = {
        'config files of MMDetection, without those that only others inherit from': len(rows),
        'can be replaced': statuses['replaceable'],
        'of these, the new detector builds': sum(row['built'] == 'ok' for row in rows),
        'refused, see above': statuses['refused'],
        'no detector, or none with a backbone': statuses['no backbone'],
        'cannot be built before the swap where this was measured': statuses['broken before'],
        'families (folders) of which a config trains and predicts with its own backbone': len(run['control']),
        'of these, with HCGNet, too': len(run['control'] & run['swapped']),
        'families that build and do not run with their own backbone': ', '.join(
            sorted(set(families) - run['control'])
        ),
        'software': ', '.join(sorted({row['software'] for row in rows})),
    }
    return table(('', ''), [[title, str(count)] for title, count in counts.items()])


def cifar_table() -> str:
    """Errors on CIFAR-10, the paper's and those measured along a training."""
    titles = {'source': 'source', 'config': 'config', 'data': 'data', 'epoch': 'after epoch'}
    titles |= {'epochs': 'of', 'top1_error': 'top-1 error, %', 'machine': 'machine', 'software': 'software'}
    rows = read(RESULTS / 'cifar10.csv')
    return table(list(titles.values()), [[row[title] for title in titles] for row in rows])


TABLES = {
    'cifar': cifar_table,
    'swaps': swaps_table,
    'zoo': zoo_table,
    'results': readme_table,
    'configs': config_table,
    'recipe': recipe_table,
    'performance': performance_table,
    'detectors': lambda: performance_table('Mask R-CNN'),
}
MARKS = re.compile(r'(<!-- begin: (\w+) .*?-->\n).*?(<!-- end: \2 -->)', re.S)


def pages() -> dict[Path, str]:
    """What each file should hold; in text, what stands between two marks of a table."""
    filled = {
        path: MARKS.sub(lambda mark: mark[1] + TABLES[mark[2]]() + mark[3], path.read_text(encoding='utf-8'))
        for path in (ROOT / 'README.md', CONFIGS / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
    }
    return {**filled, CONFIGS / 'metafile.yml': metafile()}


def main(argv: list[str] | None = None) -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description='Write the pages of results.')
    parser.add_argument(
        '--check', action='store_true', help='write nothing; fail where a page is out of date'
    )
    parser.add_argument('--count', action='store_true', help='count parameters and multiply-adds anew first')
    options = parser.parse_args(argv)
    if options.count:
        write([count(name) for name in names()], COMPLEXITY)
        write([count_swapped(name) for name in SWAPPED], SWAPS)
    for path, text in pages().items():
        old = path.read_text(encoding='utf-8') if path.exists() else None
        if options.check and old != text:
            sys.exit(f'{path.relative_to(ROOT)} is out of date: python benchmarks/results_page.py')
        if not options.check:
            path.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main()
