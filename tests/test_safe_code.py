"""No file of the package names a function that runs what a file says: their syntax trees are searched."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_run import REPO

import mmhcg

PACKAGE = Path(mmhcg.__file__).parent  # which may be installed elsewhere
FILES = {
    f'{folder.name}/{path.relative_to(folder).as_posix()}': path
    for folder in (PACKAGE, REPO / 'tools')
    for path in sorted(folder.rglob('*.py'))
    if '.mim' not in path.parts
}
PICKLES = ('pickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal')
READERS = {f'{module}.{name}' for module in PICKLES for name in ('load', 'loads', 'open', 'Unpickler')}
READERS |= {f'yaml.{name}' for name in ('unsafe_load', 'unsafe_load_all', 'full_load', 'full_load_all')}
READERS |= {'eval', 'exec', 'builtins.eval', 'builtins.exec', 'torch.jit.load', 'os.system'}
READERS |= {'mmengine.load', 'mmengine.fileio.load', 'torch.hub.load_state_dict_from_url'}
ALLOWED = {
    # What the demo reads is what it wrote a moment before, in the work dir that it made.
    ('mmhcg/runs/demo.py', 'pickle.load'),
    # A base class: the one made of it finds stand-ins for whatever a file names.
    ('mmhcg/stack/unpickler.py', 'pickle.Unpickler'),
}


def unsafe_names(source: str) -> Iterator[str]:
    """The lines and dotted names, whatever they were imported as, of functions that run what a file says."""
    tree = ast.parse(source)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            above = f'{node.module}.' if isinstance(node, ast.ImportFrom) else ''
            for alias in node.names:
                local = alias.asname or alias.name.partition('.')[0]
                imported[local] = above + (alias.name if above or alias.asname else local)

    def dotted(node: ast.expr) -> str:
        root, dot, rest = ast.unparse(node).partition('.')
        return imported.get(root, root) + dot + rest

    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and dotted(node) in READERS:
            yield f'{node.lineno}: {dotted(node)}'
        elif isinstance(node, ast.Call) and _lacks_its_safe_option(dotted(node.func), node):
            yield f'{node.lineno}: {dotted(node.func)}'


def _lacks_its_safe_option(path: str, call: ast.Call) -> bool:
    options = {option.arg: ast.unparse(option.value) for option in call.keywords}
    loader = options.get('Loader') or (ast.unparse(call.args[1]) if len(call.args) > 1 else '')
    return (
        (path == 'torch.load' and options.get('weights_only') != 'True')
        or (path in ('yaml.load', 'yaml.load_all') and not loader.endswith('SafeLoader'))
        or (path == 'numpy.load' and options.get('allow_pickle', 'False') != 'False')
    )


@pytest.mark.parametrize('name', FILES)
def test_nothing_runs_what_a_file_says(name):
    found = unsafe_names(FILES[name].read_text(encoding='utf-8'))
    assert [call for call in found if (name, call.partition(' ')[2]) not in ALLOWED] == []


def test_exceptions_are_still_needed_and_none_is_in_the_tools():
    for name, call in ALLOWED:
        assert name.startswith('mmhcg/')
        assert any(
            found.endswith(f' {call}') for found in unsafe_names(FILES[name].read_text(encoding='utf-8'))
        )


@pytest.mark.parametrize(
    'source',
    [
        'eval(x)',
        'exec(x)',
        'map(eval, x)',
        'import pickle\npickle.load(f)',
        'import pickle as p\np.loads(b)',
        'from pickle import loads as read\nread(b)',
        'import pickle\npickle.Unpickler(f).load()',
        'import yaml\nyaml.load(f)',
        'import yaml\nyaml.load(f, Loader=yaml.Loader)',
        'import torch\ntorch.load(f)',
        'import torch\ntorch.load(f, weights_only=False)',
        'import torch\ntorch.load(f, weights_only=safe)',
        'def f():\n    from torch import load\n    return load(x)',
        'import numpy as np\nnp.load(f, allow_pickle=True)',
        'import torch.jit\ntorch.jit.load(f)',
        'from mmengine.fileio import load\nload("x.pkl")',
    ],
)
def test_unsafe_names_are_found(source):
    assert len(list(unsafe_names(source))) == 1


def test_safe_names_are_not():
    source = (
        'import json, torch, yaml\nfrom yaml import SafeLoader\nmodel.eval()\njson.load(f)\n'
        'torch.load(f, weights_only=True)\nyaml.safe_load(f)\nyaml.load(f, Loader=yaml.SafeLoader)\n'
        'yaml.load(f, SafeLoader)\nself.load(f)\n'
    )
    assert list(unsafe_names(source)) == []
