"""README says what the files say."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_results_table_is_that_of_the_csv_files():
    spec = importlib.util.spec_from_file_location('results_table', ROOT / 'benchmarks' / 'results_table.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.with_table(README) == README
    assert module.table().count('\n') > 3


def test_every_file_that_it_names_exists():
    names = re.findall(r'`((?:configs|tools|tests|benchmarks)/[\w/.]+\.\w+)`|\]\((?!http|#)([^)]+)\)', README)
    names += re.findall(r'((?:tools|configs)/\w+\.py)', README)
    names = [name if isinstance(name, str) else ''.join(name) for name in names]
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).exists()] == []
    configs = set(re.findall(r'`(\w+_\w+_\w+\.py)`', README))
    assert {path.name for path in (ROOT / 'configs').glob('*.py')} == configs
