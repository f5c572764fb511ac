"""README and the pages of results say what the files say."""

import json
import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config
from tiny_run import CONFIGS, REPO, load_script

README = (REPO / 'README.md').read_text(encoding='utf-8')
PAGE = (CONFIGS / 'README.md').read_text(encoding='utf-8')
page = load_script(REPO / 'benchmarks' / 'results_page.py')


def test_pages_are_up_to_date():
    stale = [path.name for path, text in page.pages().items() if path.read_text(encoding='utf-8') != text]
    assert not stale, 'run `python benchmarks/results_page.py`'
    page.main(['--check'])


def test_check_notices_a_changed_number(monkeypatch):
    paper = [dict(row, box_ap='99.9') for row in page.read(page.RESULTS / 'paper_coco.csv')]
    read = page.read
    monkeypatch.setattr(page, 'read', lambda path: paper if path.name == 'paper_coco.csv' else read(path))
    with pytest.raises(SystemExit, match=r'README\.md is out of date'):
        page.main(['--check'])


def test_measured_names_data_and_machine_of_each_run(monkeypatch, tmp_path):
    (tmp_path / 'a.csv').write_text(
        'source,config,box_ap,mask_ap,data,machine\n'
        'measured here,x,1,2,d1,m1\nmeasured here,x,3,4,d2,m2\nmeasured here,x,5,6,d1,m1\npaper,x,9,9,d1,m1\n'
    )
    (tmp_path / 'speed.csv').write_text('source,config,images_per_second\nmeasured here,x,7\n')
    monkeypatch.setattr(page, 'RESULTS', tmp_path)
    assert page.measured('x') == '1 / 2, 5 / 6 (d1; m1); 3 / 4 (d2; m2)'
    assert page.measured('y') == 'not measured'


def networks():
    """One config for each network that the configs train; losses, data and pixel conventions do not count."""
    found = {}
    for name in page.names():
        model = Config.fromfile(CONFIGS / f'{name}.py').model
        key = json.dumps([model.backbone, 'mask_head' in model.roi_head], default=str)
        found.setdefault(key, []).append(name)
    return list(found.values())


@pytest.mark.parametrize('names', networks(), ids=lambda names: names[0])
def test_sizes_are_those_of_the_configs(names):
    rows = {row['config']: row for row in page.read(page.COMPLEXITY)}
    assert rows.keys() == set(page.names())
    counted = {key: str(value) for key, value in page.count(names[0]).items()}
    for name in names:
        assert rows[name] == dict(counted, config=name)


def test_page_names_both_baselines_and_measures_nothing_on_coco():
    reading, table = PAGE.split('<!-- begin: configs')
    assert PAGE.startswith('# Configs and their results\n\n**How to read this page.**')
    assert '38.2 / 34.7' in reading and '37.3 / 34.2' in reading
    rows = [line for line in table.split('<!-- end')[0].splitlines() if line.startswith('| [')]
    assert len(rows) == len(page.names())
    assert [row for row in rows if 'not measured' not in row] == [row for row in rows if 'demo' in row]


def test_recipe_has_the_authors_values():
    """FACTS, section 4: where a number of theirs stands in the table, ours is the same."""
    rows = [
        line.strip('| ').split(' | ')
        for line in PAGE.split('<!-- begin: recipe')[1].splitlines()
        if '`' in line
    ]
    compared = 0
    for setting, authors, ours, *_ in rows:
        if re.fullmatch(r'[\d., ]+|True|False|1/\d|\w+Loss', authors):
            compared += 1
            expected = f'{1 / int(authors[2:]):.4g}' if authors.startswith('1/') else authors
            assert ours == expected, setting
    assert compared > 30


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
        assert ('Results' in model) == (source in ('paper', 'MMDetection'))
        results[model['Name']] = [result['Metrics'] for result in model.get('Results', [])]
    # FACTS, section 3
    assert results['mask_rcnn_hcgnet_b_fpn_1x_coco_paper'] == [{'box AP': 38.3}, {'mask AP': 35.2}]
    assert results['mask_rcnn_r50_fpn_1x_coco_paper'] == [{'box AP': 37.3}, {'mask AP': 34.2}]
    assert results['mask_rcnn_r50_fpn_1x_coco'] == [{'box AP': 38.2}, {'mask AP': 34.7}]
    assert results['mask_rcnn_r101_fpn_1x_coco'] == [{'box AP': 40.0}, {'mask AP': 36.1}]
    assert results['mask_rcnn_hcgnet_b_fpn_1x_coco'] == []


def test_every_file_that_readme_names_exists():
    names = re.findall(r'`((?:configs|tools|tests|benchmarks)/[\w/.]+\.\w+)`|\]\((?!http|#)([^)]+)\)', README)
    names += re.findall(r'((?:tools|configs)/\w+\.py)', README)
    names = [name if isinstance(name, str) else ''.join(name) for name in names]
    assert len(names) > 5
    assert [name for name in names if not Path(REPO, name).exists()] == []
    configs = set(re.findall(r'`(\w+_\w+_\w+\.py)`', README))
    assert {path.name for path in CONFIGS.glob('*.py')} == configs
