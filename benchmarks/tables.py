"""The tables of README, docs and configs/README.md, in Markdown."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import records
from mmengine.config import Config
from records import CONFIGS, LARGE, MMDET_CONFIGS, ROOT, SHAPE, mmdet_ap, mmdet_base, scores, sizes

from mmhcg.analysis.tables import read_table


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


def headline_table() -> str:
    """README's first: Mask R-CNN with HCGNet-B beside the same with ResNet-50."""
    names = ['mask_rcnn_hcgnet_b_fpn_1x_coco', 'mask_rcnn_r50_fpn_1x_coco']
    sizes_of = {row['config']: row for row in sizes()}
    ours, theirs = (sizes_of[name] for name in names)
    rows = [['COCO box / mask AP', *_published(), 'paper; **not reproduced here**']]
    for title, field, scale, unit in (
        ('parameters', 'parameters', 1e6, 'M'),
        ('multiply-adds, 800x1280', 'exact', 1e9, 'G'),
        ('of these in the backbone', 'backbone_exact', 1e9, 'G'),
    ):
        rows.append(
            [title, *(f'{int(row[field]) / scale:.1f} {unit}' for row in (ours, theirs)), 'counted here']
        )
    measured_rows = [
        row for row in read_table(records.RESULTS / 'backbones.csv') if row['model'] == 'Mask R-CNN'
    ]
    timed = {(row['phase'], row['candidate']): row for row in measured_rows}
    for phase, title in (('train', 'training step, time'), ('infer', 'prediction, time')):
        b, r50 = timed[phase, 'b'], timed[phase, 'r50']
        ratios = sorted(float(b[field]) / float(r50[field]) for field in ('best_ms', 'median_ms'))
        shown = ' to '.join(dict.fromkeys(f'{ratio:.2f}' for ratio in ratios))
        rows.append([title, shown, '1', f'measured here, {b["machine"]}'])
    kept = [float(timed['train', name]['saved_mb']) for name in ('b', 'r50')]
    rows.append(['kept for the backward pass', *(f'{mb:.0f} MB' for mb in kept), 'counted here'])
    return table(('Mask R-CNN, FPN', 'HCGNet-B', 'ResNet-50', 'source'), rows)


def _published() -> list[str]:
    names = ('mask_rcnn_hcgnet_b_fpn_1x_coco_paper', 'mask_rcnn_r50_fpn_1x_coco_paper')
    return [shown_aps(aps) for name in names for runs in scores(name, 'paper').values() for aps in runs]


def readme_table() -> str:
    """README's: what was measured; the paper's APs stand in the headline."""
    titles = ('what', 'data', 'box_ap', 'mask_ap', 'machine')
    head = [title.replace('_ap', ' AP') for title in titles]
    rows = [row for row in records.results() if row['source'] == 'measured here']
    return table(head, [[row.get(title) or '' for title in titles] for row in rows])


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
    head = [
        'config',
        'parameters: trainable of all',
        'multiply-adds',
        'backbone alone',
        "by the paper's counter",
    ]
    head += ['paper: box / mask AP', "MMDetection's baseline: box / mask AP", 'measured here: box / mask AP']
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
    for row in read_table(ROOT / 'benchmarks' / 'paper_recipe.csv'):
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


def performance_table(model: str = 'backbone') -> str:
    """Networks side by side, as `tools/benchmark.py` measured them; above, what all rows have in common."""
    titles = {'phase': 'phase', 'mode': 'mode', 'candidate': 'network', 'saved_mb': 'MB kept for backward'}
    titles |= {
        'operators': 'operators',
        'moved_mb': 'MB moved',
        'best_ms': 'best ms',
        'median_ms': 'median ms',
    }
    titles |= {'to_plain': 'best to plain', 'to_r50': 'best to R-50', 'median_to_r50': 'median to R-50'}
    titles['shape'] = 'images'
    titles |= {'machine': 'machine', 'software': 'software', 'date': 'date'}
    rows = [row for row in read_table(records.RESULTS / 'backbones.csv') if row['model'] == model]
    if not rows:
        options = '' if model == 'backbone' else '--detector '
        command = f'python tools/benchmark.py {options}--csv benchmarks/results/backbones.csv'
        sys.exit(f'backbones.csv has no row of a {model}: {command}')
    r50 = {(row['phase'], row['mode']): row for row in rows if row['candidate'] == 'r50'}
    for row in rows:
        other = r50.get((row['phase'], row['mode']))
        row['median_to_r50'] = (
            str(round(float(row['median_ms']) / float(other['median_ms']), 3)) if other else ''
        )
    values = {key: {row[key] for row in rows} for key in titles}
    shared = [values[key].pop() for key in ('shape', 'machine', 'software', 'date') if len(values[key]) == 1]
    shown = [key for key in titles if values[key] - {''}]
    cells = [[_rounded(row[key]) if key.endswith('ms') else row[key] for key in shown] for row in rows]
    caption = f'*{", ".join(shared)}*\n\n' if shared else ''
    return caption + table([titles[key] for key in shown], cells)


def _rounded(number: str) -> str:
    """Three digits, as many as mean anything."""
    return f'{float(f"{float(number):.3g}"):g}' if number else ''


def swaps_table() -> str:
    """docs/swap.md's examples, before and after."""
    head = ('', 'parameters before', 'now', 'multiply-adds before', 'now')
    rows = []
    for row in read_table(records.SWAPS):
        sizes = [
            f'{int(row[f"{field}_{when}"]) / scale:.2f} {unit}'
            for field, scale, unit in (('parameters', 1e6, 'M'), ('exact', 1e9, 'G'))
            for when in ('before', 'now')
        ]
        rows.append([f'`{row["config"]}`', *sizes])
    return table(head, rows)


def zoo_table() -> str:
    """How far the swap reaches, as `tools/swap_zoo.py` found it."""
    rows = read_table(records.RESULTS / 'zoo.csv')
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


def pretrain_table() -> str:
    """The paper's errors of the classifiers."""
    head = ('config', 'data', 'epochs', 'top-1 error', 'top-5 error')
    fields = ('data', 'epochs', 'top1_error', 'top5_error')
    rows = read_table(records.RESULTS / 'paper_classification.csv')
    return table(
        head, [[f'[`{row["config"]}`]({row["config"]}.py)', *(row[f] for f in fields)] for row in rows]
    )


def cifar_sentence() -> str:
    """The error on CIFAR-10 after the first and the last epoch that were trained."""
    rows = read_table(records.RESULTS / 'cifar10.csv')
    first, last = rows[0], rows[-1]
    return (
        f'Measured here, on {last["machine"]} with {last["software"]}: top-1 error {first["top1_error"]} % '
        f'after epoch {first["epoch"]}, '
        f'{last["top1_error"]} % after epoch {last["epoch"]} of {last["epochs"]}.\n'
    )


TABLES = {
    'pretrain': pretrain_table,
    'cifar': cifar_sentence,
    'swaps': swaps_table,
    'zoo': zoo_table,
    'headline': headline_table,
    'results': readme_table,
    'configs': config_table,
    'recipe': recipe_table,
    'performance': performance_table,
    'detectors': lambda: performance_table('Mask R-CNN'),
}
