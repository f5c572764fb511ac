"""README and the pages of results say what the files say."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import records
import results_page as page
import tables
import yaml
from mmengine.config import Config
from tiny_run import CONFIGS, REPO

README = (REPO / 'README.md').read_text(encoding='utf-8')
PAGE = (CONFIGS / 'README.md').read_text(encoding='utf-8')


def test_pages_are_up_to_date():
    stale = [path.name for path, text in page.pages().items() if path.read_text(encoding='utf-8') != text]
    assert not stale, 'run `python benchmarks/results_page.py`'
    page.main(['--check'])


def test_check_notices_a_changed_number(tmp_path, monkeypatch):
    with_results(tmp_path, monkeypatch, COCO_ROW)
    with pytest.raises(SystemExit, match=r'README\.md is out of date'):
        page.main(['--check'])


COCO_ROW = {
    'source': 'measured here',
    'what': 'Faster R-CNN HCGNet-B-FPN',
    'config': 'faster_rcnn_hcgnet_b_fpn_1x_coco',
    'data': 'COCO val2017',
    'box_ap': '38.9',
    'mask_ap': '',
    'machine': '8 GPUs',
}


def with_results(folder, monkeypatch, *rows):
    """The results in the repository, and a file coco.csv with these rows."""
    shutil.copytree(records.RESULTS, folder, dirs_exist_ok=True)
    titles = dict.fromkeys(title for row in rows for title in row)
    with (folder / 'coco.csv').open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, titles)
        writer.writeheader()
        writer.writerows(rows)
    monkeypatch.setattr(records, 'RESULTS', folder)


def test_a_measured_row_reaches_every_page(tmp_path, monkeypatch):
    masks = dict(COCO_ROW, config='mask_rcnn_hcgnet_b_fpn_1x_coco_paper', box_ap='38.4', mask_ap='35.1')
    elsewhere = dict(masks, config='mask_rcnn_hcgnet_c_fpn_1x_coco', data='a hundred images')
    again = dict(masks, box_ap='38.6', mask_ap='35.2')
    with_results(tmp_path, monkeypatch, COCO_ROW, masks, again, elsewhere)
    texts = {str(path.relative_to(REPO)): text for path, text in page.pages().items()}
    row = '| Faster R-CNN HCGNet-B-FPN | COCO val2017 | 38.9 |  | 8 GPUs |'
    assert row in texts['README.md']
    assert '| 38.9 (COCO val2017; 8 GPUs) |' in texts['configs/README.md']
    assert '| 38.4 / 35.1, 38.6 / 35.2 (COCO val2017; 8 GPUs) |' in texts['configs/README.md']
    models = {model['Name']: model for model in yaml.safe_load(texts['configs/metafile.yml'])['Models']}
    found = {
        name: (model['Metadata']['Source of Results'], [r['Metrics'] for r in model.get('Results', [])])
        for name, model in models.items()
    }
    assert found[COCO_ROW['config']] == ('measured here (1 x 8 GPUs)', [{'box AP': 38.9}])
    assert found[masks['config']] == ('measured here (2 x 8 GPUs)', [{'box AP': 38.5}, {'mask AP': 35.15}])
    assert found[elsewhere['config']] == ('none: not measured', [])


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(config='faster_rcnn'), "coco.csv, line 2: config 'faster_rcnn' is none of faster_rcnn_hcg"),
        (dict(source='measured'), "coco.csv, line 2: source 'measured' is none of paper, measured here"),
        (dict(machine=''), 'coco.csv, line 2: no machine'),
        (dict(box_ap=''), 'coco.csv, line 2: no box_ap'),
    ],
)
def test_a_row_that_does_not_say_what_it_is_of_is_refused(tmp_path, monkeypatch, change, message):
    with_results(tmp_path, monkeypatch, {**COCO_ROW, **change})
    with pytest.raises(SystemExit, match=message):
        page.main(['--check'])


def test_a_missing_column_is_named(tmp_path, monkeypatch):
    with_results(tmp_path, monkeypatch, {k: v for k, v in COCO_ROW.items() if k not in ('data', 'machine')})
    with pytest.raises(SystemExit, match=r'coco\.csv, line 2: no data, machine'):
        page.main(['--check'])


def test_files_of_other_numbers_are_passed_by(tmp_path, monkeypatch):
    before = records.results()
    with_results(tmp_path, monkeypatch, {'source': 'measured here', 'config': 'x', 'images_per_second': '7'})
    assert records.results() == before


def test_a_table_without_rows_is_refused(monkeypatch):
    monkeypatch.setattr(tables, 'read_table', lambda path: [dict(model='backbone')])
    with pytest.raises(
        SystemExit, match=r'no row of a Mask R-CNN: python tools/benchmark.py --detector --csv'
    ):
        tables.performance_table('Mask R-CNN')


def test_a_mode_that_resnet_was_not_measured_in_has_no_ratio(monkeypatch):
    row = dict(tables.read_table(records.RESULTS / 'backbones.csv')[0], candidate='b', mode='of its own')
    monkeypatch.setattr(tables, 'read_table', lambda path: [row])
    assert 'median to R-50' not in tables.performance_table(row['model'])


def test_a_config_without_a_size_is_noticed(tmp_path, monkeypatch):
    lines = records.COMPLEXITY.read_text(encoding='utf-8').splitlines(keepends=True)
    (tmp_path / 'complexity.csv').write_text(''.join(line for line in lines if '_r101_' not in line))
    monkeypatch.setattr(records, 'COMPLEXITY', tmp_path / 'complexity.csv')
    with pytest.raises(SystemExit, match=r'differ in mask_rcnn_r101_fpn_1x_coco: .* --count'):
        page.main(['--check'])


def networks():
    """One config for each network that the configs train; losses, data and pixel conventions do not count."""
    found = {}
    for name in records.names():
        model = Config.fromfile(CONFIGS / f'{name}.py').model
        key = json.dumps([model.backbone, 'mask_head' in model.roi_head], default=str)
        found.setdefault(key, []).append(name)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize('names', networks(), ids=lambda names: names[0])
def test_sizes_are_those_of_the_configs(names):
    rows = {row['config']: row for row in records.read_table(records.COMPLEXITY)}
    assert rows.keys() == set(records.names())
    counted = {key: str(value) for key, value in records.count(names[0]).items()}
    for name in names:
        assert rows[name] == dict(counted, config=name)


def test_page_names_both_baselines_and_what_was_measured():
    table, reading = PAGE.split('<!-- end: configs')
    assert '38.2 / 34.7' in reading and '37.3 / 34.2' in reading
    rows = [line for line in table.splitlines() if line.startswith('| [')]
    unmeasured = {re.search(r'`(\w+)`', row)[1] for row in rows if '| not measured |' in row}
    assert len(rows) == len(records.names())
    files = [records.read_table(path) for path in records.RESULTS.glob('*.csv')]
    measured = {row['config'] for file in files for row in file if row.get('source') == 'measured here'}
    assert unmeasured == set(records.names()) - measured
    assert 'mask_rcnn_hcgnet_demo_shapes' in measured


def test_recipe_has_the_authors_values():
    """Where a number of theirs stands in the table, ours is the same."""
    rows = [
        line.strip('| ').split(' | ')
        for line in PAGE.split('<!-- begin: recipe')[1].split('<!-- end')[0].splitlines()
        if '`' in line
    ]
    compared = 0
    for setting, authors, ours, *_ in rows:
        if re.fullmatch(r'[\d., ]+|True|False|1/\d|\w+Loss', authors):
            compared += 1
            expected = f'{1 / int(authors[2:]):.4g}' if authors.startswith('1/') else authors
            assert ours == expected, setting
    assert compared > 30


PUBLISHED = {  # the paper's table of COCO (arXiv 1908.09699); baselines: MMDetection 3's model zoo
    'mask_rcnn_hcgnet_b_fpn_1x_coco_paper': [{'box AP': 38.3}, {'mask AP': 35.2}],
    'mask_rcnn_r50_fpn_1x_coco_paper': [{'box AP': 37.3}, {'mask AP': 34.2}],
    'mask_rcnn_r50_fpn_1x_coco': [{'box AP': 38.2}, {'mask AP': 34.7}],
    'mask_rcnn_r101_fpn_1x_coco': [{'box AP': 40.0}, {'mask AP': 36.1}],
}


def test_metafile_has_the_form_that_mim_reads():
    index = yaml.safe_load((REPO / 'model-index.yml').read_text(encoding='utf-8'))
    (file,) = index['Import']
    content = yaml.safe_load((REPO / file).read_text(encoding='utf-8'))
    collections = {collection['Name'] for collection in content['Collections']}
    results = {}
    for model in content['Models']:
        assert model['In Collection'] in collections
        assert model['Config'] == f'configs/{model["Name"]}.py'
        assert (REPO / model['Config']).is_file()
        source = model['Metadata']['Source of Results']
        assert ('Results' in model) == (not source.startswith('none'))
        results[model['Name']] = [result['Metrics'] for result in model.get('Results', [])]
        if source in ('paper', 'MMDetection'):
            assert results[model['Name']] == PUBLISHED[model['Name']]
    assert set(results) == set(records.names()) - set(records.SHAPE)


def anchors(path):
    """How links name the headings of a page."""
    headings = re.findall(r'^#+ (.+)', path.read_text(encoding='utf-8'), re.M)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


def test_every_file_and_heading_that_readme_names_exists():
    links = re.findall(r'\]\((?!http)([^)#]*)#?([^)]*)\)', README)
    names = [name for name, _ in links]
    names += re.findall(r'`((?:configs|tools|tests|benchmarks)/[\w/.]+\.\w+)`', README)
    names += re.findall(r'((?:tools|configs)/\w+\.py)', README)
    assert len(names) > 5
    assert [name for name in names if not Path(REPO, name).exists()] == []
    headings = [(name or 'README.md', heading) for name, heading in links if heading]
    assert ('configs/README.md', 'pretraining') in headings
    assert [(name, heading) for name, heading in headings if heading not in anchors(REPO / name)] == []


def test_every_test_that_the_page_of_promises_names_exists():
    text = (REPO / 'docs' / 'reliability.md').read_text(encoding='utf-8')
    files = {path.stem: path.read_text(encoding='utf-8') for path in (REPO / 'tests').glob('test_*.py')}
    tests = {name for code in files.values() for name in re.findall(r'def (test_\w+)', code)}
    named = set(re.findall(r'\btest_\w+', text)) - files.keys() - {'test_mode'}
    assert len(named) > 50
    assert named <= tests, named - tests


def test_no_page_waits_for_a_number():
    for path in page.pages():
        assert not re.search(r'@@\w+@@', path.read_text()), path
