"""What the doctor finds, in installations that are made up but for the last."""

from __future__ import annotations

import re
import subprocess
import sys
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
            doctor, 'find_spec', lambda name: None if name in lacking.get('modules', ()) else 1
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
            {'MMCV_full': '2.1.0'},  # other spellings of the same name
            'mmcv-lite and MMCV_full both install mmcv',
            'pip uninstall -y mmcv-lite MMCV_full && '
            'pip install --force-reinstall --no-deps mmcv-lite==2.1.0',
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
    first, missing = report.splitlines()
    assert '1 of 2 provided by mmhcg' in first
    assert missing.split() == ['knn_forward']
    (tmp_path / '_ext.abi3.so').touch()
    assert list(doctor.operators()) == ['mmcv operators: all 2 compiled']


@pytest.mark.parametrize(
    ('problems', 'code', 'last'),
    [([], 0, 'all of it fits together'), ([doctor.Problem('x is y', 'pip z')], 1, '1 problems')],
)
def test_the_exit_code_says_whether_something_is_to_be_mended(monkeypatch, capsys, problems, code, last):
    monkeypatch.setattr(doctor, 'find_problems', lambda: iter(problems))
    monkeypatch.setattr(doctor, 'operators', lambda: iter(()))
    with pytest.raises(SystemExit) as end:
        doctor.main([])
    assert end.value.code == code
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == last
    assert ('problem: x is y\n   mend: pip z' in out) == bool(problems)


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


def test_this_installation_is_sound(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main([])
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    assert 'all of it fits together' in out
    assert re.search(r'foolbox +(foolbox [\d.]+|not installed, optional: \[attack\])\n', out)
