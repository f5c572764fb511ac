"""What the doctor finds, in installations that are made up but for the last."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.machinery import PathFinder
from types import SimpleNamespace

import pytest

from mmhcg import doctor

HEALTHY = {'torch': '2.14.1', 'torchvision': '0.29.1', 'numpy': '2.4.6', 'opencv-python': '5.0.0'}
HEALTHY |= {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'}


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A function that makes up what is installed, and returns the doctor's problems."""

    def problems(versions: dict[str, str], **lacking) -> dict[str, str]:
        found = [
            SimpleNamespace(metadata={'Name': name}, version=version) for name, version in versions.items()
        ]
        monkeypatch.setattr(doctor, 'distributions', lambda: found)
        monkeypatch.setattr(doctor, 'requires', lambda name: ['numpy', 'torch==2.14.1'])
        monkeypatch.setattr(
            doctor,
            'find_spec',
            lambda name: None if name in lacking.get('modules', ()) else SimpleNamespace(origin='x.py'),
        )
        monkeypatch.setattr(doctor, '_import_error', lambda name: lacking.get('errors', {}).get(name))
        monkeypatch.setattr(doctor, 'PACKAGE', tmp_path / 'mmhcg')
        return {problem.what: problem.mend for problem in doctor.find_problems()}

    return problems


def test_nothing_is_wrong_where_all_fits(installed):
    assert installed(HEALTHY) == {}
    assert installed({**HEALTHY, 'torch': '2.14.1+cu130'}) == {}
    assert installed({**HEALTHY, 'opencv-python-headless': '5.0.0'}) == {}  # of the same version
    assert installed({**HEALTHY, 'torch': '2.1.0', 'torchvision': '0', 'numpy': '1.26'}).keys() == {
        'torchvision 0 is built for PyTorch 2.14.1, not 2.1.0'
    }


@pytest.mark.parametrize(
    ('versions', 'what', 'mend'),
    [
        (
            {'mmcv': '2.1.0'},
            'mmcv and mmcv-lite both install mmcv',
            'pip uninstall -y mmcv mmcv-lite && pip install --force-reinstall --no-deps mmcv-lite==2.1.0',
        ),
        (
            {'opencv-python-headless': '4.12.0'},
            'opencv-python and opencv-python-headless both install cv2',
            'pip uninstall -y opencv-python opencv-python-headless && '
            'pip install --force-reinstall --no-deps opencv-python-headless',
        ),
        (
            {'torch': '2.13.0'},
            'torchvision 0.29.1 is built for PyTorch 2.14.1, not 2.13.0',
            'pip install --upgrade torchvision torch==2.13.0',
        ),
        (
            {'mmcv-lite': '2.2.0'},
            'mmdet 3.3.0 refuses mmcv-lite 2.2.0',
            'pip uninstall -y mmcv-lite && pip install mmcv-lite==2.1.0',
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_command(installed, versions, what, mend):
    assert installed({**HEALTHY, **versions}) == {what: mend}


def test_numpy_2_beside_an_old_pytorch(installed):
    found = installed({**HEALTHY, 'torch': '2.1.0'})
    assert (
        found['PyTorch 2.1.0 is built for NumPy 1, not 2.4.6'] == "pip install 'numpy<2' 'opencv-python<4.12'"
    )


def test_what_is_missing_or_cannot_be_imported(installed):
    assert installed(HEALTHY, modules=['pkg_resources']) == {
        "`_base_ = 'mmdet::...'` needs pkg_resources, which setuptools 82 dropped": (
            "pip install 'setuptools<81'"
        )
    }
    assert installed(HEALTHY, modules=['mmdet']) == {'mmdet is not installed': doctor.STANDALONE}
    assert installed(HEALTHY, errors={'cv2': 'ImportError: libGL.so.1'}) == {
        '`import cv2` fails: ImportError: libGL.so.1': 'pip install --force-reinstall --no-deps '
        'opencv-python-headless'
    }


def test_a_stale_mim_folder(installed, tmp_path):
    (tmp_path / 'mmhcg' / '.mim').mkdir(parents=True)
    assert installed(HEALTHY) == {}  # of a wheel
    (tmp_path / 'setup.py').touch()
    (mend,) = installed(HEALTHY).values()
    assert mend == f'rm -r {tmp_path / "mmhcg" / ".mim"}'


def test_operators_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / 'ops').mkdir()
    (tmp_path / 'ops' / 'some.py').write_text("ext = ext_loader.load_ext('_ext', ['nms', 'knn_forward'])")
    monkeypatch.setattr(
        doctor, 'find_spec', lambda name: SimpleNamespace(origin=str(tmp_path / '__init__.py'))
    )
    (report,) = doctor.operators()
    assert '1 of 2 provided by mmhcg. Most of the other 1 are for' in report and '--all' in report
    first, missing = doctor.operators(list_all=True)
    assert report.startswith(first)
    assert missing.split() == ['knn_forward']
    (tmp_path / '_ext.abi3.so').touch()
    assert list(doctor.operators()) == ['mmcv operators: all 2 compiled']


@pytest.mark.slow
def test_a_broken_installation_is_survived_and_told(tmp_path):
    (tmp_path / 'mmengine').mkdir()
    (tmp_path / 'mmengine' / '__init__.py').write_text('raise ImportError("half of it is gone")')
    run = subprocess.run(
        [
            sys.executable,
            '-c',
            f'import sys; sys.path.insert(0, {str(tmp_path)!r}); import mmhcg\n'
            'from mmhcg import doctor; doctor.main()',
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert 'HCGNet is not registered (ImportError: half of it is gone)' in run.stderr
    assert '`import mmengine` fails: ImportError: half of it is gone' in run.stdout


def test_a_folder_with_the_name_of_a_library_is_not_one(installed, tmp_path, monkeypatch):
    """Python takes it for a package without an `__init__.py`, whose import does not fail."""
    (tmp_path / 'mmcv').mkdir()
    spec = PathFinder.find_spec('mmcv', [str(tmp_path)])
    assert installed(HEALTHY) == {}
    healthy = doctor.find_spec
    monkeypatch.setattr(doctor, 'find_spec', lambda name: spec if name == 'mmcv' else healthy(name))
    assert list(doctor.operators()) == []
    (problem,) = doctor.find_problems()
    assert problem.what == f'mmcv is not installed; the folder {tmp_path / "mmcv"} is something else'


def test_this_installation_is_sound(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main([])
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    assert 'all of it fits together' in out
    assert re.search(r'foolbox +(foolbox [\d.]+|not installed, optional: \[attack\])\n', out)
