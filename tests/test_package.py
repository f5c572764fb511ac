"""mmhcg as a wheel in an environment of its own, and `mmhcg::NAME.py`, the name of a shipped config."""

from __future__ import annotations

import ast
import os
import shutil
import site
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.hub import get_config
from tiny_run import CLASSES, CONFIG, CONFIGS, REPO, read_scalars, write_data

from mmhcg import stack
from mmhcg.__main__ import main
from mmhcg.stack import config_paths

MASK_B = 'mask_rcnn_hcgnet_b_fpn_1x_coco.py'
NAMES = sorted(
    file.relative_to(CONFIGS).as_posix() for file in CONFIGS.rglob('*.py') if file.parent.name != '_base_'
)
SOURCES = (
    'mmhcg',
    'configs',
    'tools',
    'model-index.yml',
    'MANIFEST.in',
    'README.md',
    'pyproject.toml',
    'setup.py',
)


def run_python(python: str | Path, *argv: object, cwd: Path) -> str:
    """Output of `python argv`, where nothing but the environment of `python` says where modules are."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    process = subprocess.run(
        [str(python), *map(str, argv)],
        cwd=cwd,
        env={**environment, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: setuptools leaves its folders in the source tree."""
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    source.mkdir()
    for name in SOURCES:
        if (REPO / name).is_dir():
            ignore = shutil.ignore_patterns('__pycache__')
            shutil.copytree(REPO / name, source / name, ignore=ignore)
        else:
            shutil.copy(REPO / name, source / name)
    (source / 'tests').mkdir()
    (source / 'tests' / 'test_package.py').touch()
    options = ('--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', folder)
    run_python(sys.executable, '-m', 'pip', 'wheel', *options, source, cwd=folder)
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, and everything but mmhcg that the running interpreter has."""
    folder = tmp_path_factory.mktemp('environment')
    run_python(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder)
    packages = next(folder.glob('lib/python*/site-packages'))
    # Links come second: through them pip would change the running interpreter's own packages.
    options = ('--no-deps', '--no-index', '--target', packages)
    run_python(sys.executable, '-m', 'pip', 'install', *options, wheel, cwd=folder)
    for entry in (entry for place in site.getsitepackages() for entry in Path(place).glob('*')):
        if 'mmhcg' not in entry.name.lower():
            (packages / entry.name).symlink_to(entry)
    return folder


def shipped(package: Path) -> Path:
    """Where MIM looks for what a package ships."""
    return next(package.glob('lib/python*/site-packages')) / 'mmhcg/.mim'


@pytest.mark.slow
def test_wheel_holds_configs_and_tools_byte_for_byte(wheel):
    files = [REPO / 'model-index.yml', *CONFIGS.rglob('*'), *(REPO / 'tools').rglob('*')]
    expected = {
        f'mmhcg/.mim/{file.relative_to(REPO).as_posix()}': file.read_bytes()
        for file in files
        if file.is_file() and '__pycache__' not in file.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith('mmhcg/.mim/')]
        assert {name: archive.read(name) for name in names} == expected


@pytest.mark.slow
def test_source_archive_holds_what_a_wheel_is_built_from_and_no_tests(wheel):
    """Setuptools would add tests/test_*.py, without their helpers."""
    source = wheel.parent / 'source'
    run_python(sys.executable, 'setup.py', '-q', 'sdist', '--formats=zip', cwd=source)
    with zipfile.ZipFile(next(source.glob('dist/*.zip'))) as archive:
        names = {name.partition('/')[2] for name in archive.namelist()}
    assert {'setup.py', 'README.md', 'model-index.yml', f'configs/{MASK_B}', 'tools/train.py'} <= names
    assert not [name for name in names if name.startswith('tests')]


INSTALLED = """
import mmhcg
from mmengine.config import Config
from mmengine.hub import get_config
print([mmhcg.__file__, Config.fromfile('heir.py').to_dict(), get_config({name!r}).to_dict()])
"""


@pytest.mark.slow
def test_installed_configs_are_found_by_name(environment, tmp_path):
    name = f'mmhcg::{MASK_B}'
    (tmp_path / 'heir.py').write_text(f'_base_ = {name!r}')
    output = run_python(environment / 'bin/python', '-c', INSTALLED.format(name=name), cwd=tmp_path)
    file, heir, config = ast.literal_eval(output)
    assert Path(file) == shipped(environment).with_name('__init__.py')
    assert heir == config == Config.fromfile(CONFIGS / MASK_B).to_dict()


@pytest.mark.slow
def test_installed_tool_trains_as_mim_calls_it(environment, tmp_path):
    """`mim train mmhcg tiny.py ...` runs this very command."""
    (tmp_path / 'tiny.py').write_text(CONFIG.format(base=f'mmhcg::{MASK_B}', classes=CLASSES))
    options = ('--data-root', write_data(tmp_path), '--work-dir', 'run', '--no-pretrained')
    options += ('--cfg-options', 'train_cfg.max_epochs=1')
    run_python(environment / 'bin/python', '-m', 'mmhcg', 'get_flops', f'mmhcg::{MASK_B}', cwd=tmp_path)
    tool = shipped(environment) / 'tools/train.py'
    run_python(environment / 'bin/python', tool, 'tiny.py', '--launcher', 'none', *options, cwd=tmp_path)
    assert (tmp_path / 'run/epoch_1.pth').is_file()
    assert {'loss', 'coco/segm_mAP'} <= {key for line in read_scalars(tmp_path / 'run') for key in line}


@pytest.fixture
def command(monkeypatch, capsys):
    """`mmhcg ARGUMENTS`: its exit code, and what it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['mmhcg'])
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        return stop.value.code, ''.join(capsys.readouterr())

    return run


def test_the_command_lists_tools_and_runs_them_with_their_exit_codes(command):
    assert command() == command('--help') == (0, command('-h')[1])
    assert '{doctor,benchmark,check_data,' in command()[1]
    assert command('check-data', 'nowhere.json')[0] == 2
    code, text = command('get_flops', '--help')
    assert code == 0 and text.startswith('usage: get_flops.py ')
    for name, error in (('nonsense', 'nonsense'), ('trian', 'trian: did you mean train?')):
        code, text = command(name)
        assert code == 2 and text.endswith(f'\nerror: no tool {error}\n')


@pytest.mark.parametrize('config', NAMES)
def test_every_config_is_found_by_name(config, tmp_path):
    name = f'mmhcg::{config}'
    (tmp_path / 'heir.py').write_text(f'_base_ = {name!r}')
    expected = Config.fromfile(CONFIGS / config).to_dict()
    assert Config.fromfile(tmp_path / 'heir.py').to_dict() == expected
    assert get_config(name).to_dict() == expected


def test_unknown_name_lists_the_configs(tmp_path):
    (tmp_path / 'heir.py').write_text("_base_ = 'mmhcg::nonsense.py'")
    for load, path in ((Config.fromfile, tmp_path / 'heir.py'), (get_config, 'mmhcg::nonsense.py')):
        with pytest.raises(FileNotFoundError, match=r'mmhcg::nonsense\.py.*no such config') as error:
            load(path)
        assert str(error.value).endswith(f'It has {", ".join(NAMES)}')


@pytest.mark.slow
@pytest.mark.parametrize('beside', [(), ('configs/foreign.py', 'model-index.yml')], ids=['nothing', 'others'])
def test_a_copy_of_the_package_alone_can_be_imported(tmp_path, beside):
    """Of its configs it says that they are not there, and takes no others for them."""
    shutil.copytree(REPO / 'mmhcg', tmp_path / 'mmhcg', ignore=shutil.ignore_patterns('__pycache__'))
    for name in beside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    code = """
import mmhcg
print(mmhcg.__file__)
try:
    mmhcg.get_config('foreign')
except FileNotFoundError as error:
    print(error)
"""
    file, error = run_python(sys.executable, '-c', code, cwd=tmp_path).splitlines()
    assert file == str(tmp_path / 'mmhcg/__init__.py')
    assert error.startswith("mmhcg::foreign.py: mmhcg's configs are neither in")
    assert 'Install the package' in error


def test_a_second_call_changes_nothing():
    before = Config._get_cfg_path
    stack.prepare()
    assert Config._get_cfg_path is before


@pytest.mark.parametrize(('asked', 'told'), [(False, 1), (True, 2)])
def test_that_mmengine_imports_pkg_resources_is_told_to_those_alone_who_ask(asked, told):
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        if asked:
            warnings.simplefilter('always')
        stack.prepare()
        for subject in ('pkg_resources', 'distutils'):
            warnings.warn(f'{subject} is deprecated as an API. See https://x', stacklevel=1)
    assert len(caught) == told


def test_a_fork_without_these_functions_is_left_alone(monkeypatch):
    fork = SimpleNamespace()
    monkeypatch.setattr(config_paths, 'Config', fork)
    monkeypatch.setattr(config_paths, 'hub', fork)
    config_paths.register_config_paths.__wrapped__()
    assert not vars(fork)
