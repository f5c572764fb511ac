"""What the doctor finds, in installations that are made up but for the last."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from mmhcg import doctor, installation

HEALTHY = {'torch': '2.14.1', 'torchvision': '0.29.1', 'numpy': '2.4.6', 'opencv-python': '5.0.0'}
HEALTHY |= {'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'}
HEALTHY |= {'setuptools': '80.10.2', 'safetensors': '0.8.0'}
BOUNDS = """
mmcv_minimum_version = '2.0.0rc4'
mmcv_maximum_version = '2.2.0'
mmengine_minimum_version = '0.7.1'
mmengine_maximum_version = '1.0.0'
"""


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A function that makes up what is installed, and returns the doctor's problems."""

    def problems(versions: dict[str, str], modules=(), errors=(), mmdet='') -> dict[str, str]:
        found = [
            SimpleNamespace(metadata={'Name': name}, version=version, files=None)
            for name, version in versions.items()
        ]
        site = tmp_path / 'site'
        (site / 'mmdet').mkdir(parents=True, exist_ok=True)
        (site / 'mmdet' / '__init__.py').write_text(mmdet)
        monkeypatch.setattr(installation, 'distributions', lambda: found)
        monkeypatch.setattr(installation, 'requires', lambda name: ['numpy', 'torch==2.14.1'])
        for module in (doctor, installation):
            monkeypatch.setattr(
                module,
                'find_spec',
                lambda name: None if name in modules else SimpleNamespace(origin=str(site / name / 'x.py')),
            )
        monkeypatch.setattr(doctor, '_import_error', lambda name: dict(errors).get(name))
        monkeypatch.setattr(doctor, '_config_problems', lambda: [])
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
            'pip uninstall -y mmcv mmcv-lite && pip install --no-deps mmcv-lite==2.1.0',
        ),
        (
            {'MMCV_full': '2.1.0'},  # other spellings of the same name
            'mmcv-lite and MMCV_full both install mmcv',
            'pip uninstall -y mmcv-lite MMCV_full && pip install --no-deps mmcv-lite==2.1.0',
        ),
        (
            {'opencv-python-headless': '4.12.0'},
            'opencv-python and opencv-python-headless both install cv2',
            'pip uninstall -y opencv-python opencv-python-headless && '
            'pip install --no-deps opencv-python-headless',
        ),
        (
            {'torch': '2.13.0'},
            'torchvision 0.29.1 is built for PyTorch 2.14.1, not 2.13.0',
            'pip install --upgrade torchvision torch==2.13.0',
        ),
        (
            {'mmcv-lite': '2.2.0'},
            'mmdet 3.3.0 wants mmcv from 2.0.0rc4 to below 2.2.0, not mmcv-lite 2.2.0',
            'pip uninstall -y mmcv-lite && pip install --no-deps mmcv-lite==2.1.0',
        ),
        (
            {'mmengine': '0.6.0'},
            'mmdet 3.3.0 wants mmengine from 0.7.1 to below 1.0.0, not mmengine 0.6.0',
            'pip uninstall -y mmengine && pip install --no-deps mmengine==0.10.7',
        ),
    ],
)
def test_what_does_not_fit_is_named_with_the_command(installed, versions, what, mend):
    assert installed({**HEALTHY, **versions}, mmdet=BOUNDS) == {what: mend}
    assert installed(HEALTHY, mmdet=BOUNDS) == {}


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
    assert installed(HEALTHY, modules=['mmdet', 'mmcv']) == {
        'not installed: mmcv, mmdet': installation.hint('standalone')
    }
    assert list(installed({**HEALTHY, 'mmdet': '3.3.0'} | {'numpy': '2'}).values()) == []
    nameless = {name: version for name, version in HEALTHY.items() if name != 'mmcv-lite'}
    assert installed(nameless) == {
        'mmcv is there, but not the metadata by which pip knows it': (
            'pip install --force-reinstall --no-deps mmcv-lite==2.1.0'
        )
    }


def test_only_the_first_import_that_fails_is_told(installed):
    first, second = (doctor.Problem(f'`import {name}` fails', 'mend') for name in ('cv2', 'mmdet'))
    assert installed(HEALTHY, errors={'cv2': first, 'mmdet': second}) == dict([first])
    # and none where versions tell why
    assert len(installed({**HEALTHY, 'torch': '2.13.0'}, errors={'cv2': first})) == 1


@pytest.mark.parametrize(
    ('code', 'what', 'mend'),
    [
        ('import helper', 'ValueError: half', 'helper'),  # of a dependency, which is what has to be mended
        ('raise SystemExit("boo")', 'SystemExit: boo', 'broken'),
    ],
)
def test_an_import_that_fails_is_blamed_on_the_code_that_failed(tmp_path, monkeypatch, code, what, mend):
    site = tmp_path / 'site-packages'
    for name, text in (('broken', code), ('helper', 'raise ValueError("half")')):
        (site / name).mkdir(parents=True)
        (site / name / '__init__.py').write_text(text)
    monkeypatch.syspath_prepend(site)
    problem = doctor._import_error('broken')
    assert problem == (
        f'`import broken` fails: {what}',
        f'pip install --force-reinstall --no-deps {mend}',
    )


def test_what_is_installed_is_installed_again_in_its_version(installed):
    installed({**HEALTHY, 'torch': '2.14.1+cu130'})
    command = 'pip install --force-reinstall --no-deps '
    assert installation.reinstall('torchvision') == f'{command}torch==2.14.1 torchvision==0.29.1'
    assert installation.reinstall('cv2') == f'{command}opencv-python-headless'
    assert installation.reinstall('pycocotools') == f'{command}pycocotools'


def test_a_hint_names_what_an_extra_brings(installed, monkeypatch):
    installed({**HEALTHY, 'mmhcg': '0.1.0'})
    texts = ['torch', "onnx>=1.16; extra == 'export'", 'x==1; extra == "test"']
    texts += ['y ; python_version < "3.10" and extra == "test"']
    monkeypatch.setattr(installation, 'requires', lambda name: texts)
    assert installation.hint('export') == "pip install 'onnx>=1.16'"
    assert installation.hint('test') == 'pip install x==1 y'
    installed(HEALTHY)  # a copy without metadata
    assert installation.hint('export') == "pip install -e '.[export]'"


def test_a_folder_of_the_name_is_no_package(installed, tmp_path, monkeypatch):
    (tmp_path / 'mmcv').mkdir()
    monkeypatch.chdir(tmp_path)
    (what,) = installed(HEALTHY, modules=['mmcv'])
    assert what == f'not installed: mmcv ({tmp_path / "mmcv"} is only a folder of that name)'
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'only_a_folder').mkdir()
    assert installation.folder_of('only_a_folder') is None


def test_damaged_files_are_told_and_passed_over(installed, tmp_path):
    ops = tmp_path / 'site' / 'mmcv' / 'ops'
    ops.mkdir(parents=True)
    (ops / 'half.py').write_text('x = (')
    (what,) = installed(HEALTHY)
    assert what == f'{ops / "half.py"} is damaged'
    assert installation.operator_names(ops.parent) == set()


def test_configs_that_cannot_be_read_are_told(monkeypatch):
    monkeypatch.setattr(doctor, 'CONFIG', ('nothing/nothing.py', 'nothing'))
    theirs, ours = doctor._config_problems()
    assert theirs.what.startswith(
        "mmdet's configs cannot be read: "
    ) and theirs.mend == installation.reinstall('mmdet')
    assert ours.what.startswith("mmhcg's configs cannot be read: ") and 'mmhcg' in ours.mend


def test_names_are_read_as_pip_reads_them(installed):
    assert installed({**HEALTHY, 'opencv-python': '5', 'Opencv_Python_Headless': '4'})


def test_a_stale_mim_folder(installed, tmp_path):
    (tmp_path / 'mmhcg' / '.mim').mkdir(parents=True)
    assert installed(HEALTHY) == {}  # of a wheel
    (tmp_path / 'setup.py').touch()
    (mend,) = installed(HEALTHY).values()
    assert mend == f'rm -r {tmp_path / "mmhcg" / ".mim"}'


def test_operators_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / 'ops').mkdir()
    (tmp_path / 'ops' / 'some.py').write_text("ext = ext_loader.load_ext('_ext', ['nms', 'knn_forward'])")
    monkeypatch.setattr(doctor, 'folder_of', lambda name: tmp_path)
    (report,) = doctor.operators()
    assert '1 of 2 provided by mmhcg' in report and 'knn' not in report
    _, missing = doctor.operators(all_names=True)
    assert missing.split() == ['knn_forward']
    (tmp_path / '_ext.abi3.so').touch()
    assert list(doctor.operators()) == ['mmcv operators: all 2 compiled']


@pytest.fixture
def shadows(monkeypatch, tmp_path):
    """Two functions: one installs `shady` into a folder, one tells what is wrong with folders on the path."""

    def install(folder: str, file: str, version: str | None = None, name: str = 'shady-pip') -> None:
        written = tmp_path / folder / file
        written.parent.mkdir(parents=True, exist_ok=True)
        written.touch()
        if version:
            info = tmp_path / folder / f'{name}-{version}.dist-info'
            info.mkdir()
            (info / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
            (info / 'RECORD').write_text(f'{file},,\n')

    def problems(*folders: str, pythonpath: str = '', layers: bool = False) -> list[doctor.Problem]:
        for folder in reversed(folders):
            monkeypatch.syspath_prepend(tmp_path / folder)
        monkeypatch.setenv('PYTHONPATH', pythonpath and f'{tmp_path / pythonpath}{os.pathsep}')
        monkeypatch.setattr(doctor, 'WANTED', {'shady': ('shady-pip', 'shady-lite')})
        monkeypatch.setattr(installation, 'WANTED', doctor.WANTED)
        return list(doctor._shadows(layers))

    install('site', 'shady/__init__.py', '1.0')
    return install, problems


@pytest.mark.parametrize('file', ['shady.py', 'shady/__init__.py'])
def test_what_hides_an_installed_package_is_named_once(shadows, tmp_path, file):
    install, problems = shadows
    install('other', file)
    place = tmp_path / 'other' / file.removesuffix('/__init__.py')
    what = f'shady is imported from {place}, not from the installed shady-pip 1.0'
    assert problems('other', 'site') == [(what, f'rename {place}')]
    mend = f'remove {place.parent} from PYTHONPATH'
    assert problems('other', 'site', pythonpath='other') == [(what, mend)]


@pytest.mark.parametrize('name', ['shady-pip', 'shady-lite'])
def test_so_is_an_installation_in_a_folder_of_pythonpath_where_something_fails(
    shadows, tmp_path, monkeypatch, name
):
    install, problems = shadows
    install('other', 'shady/__init__.py', '9.9', name)
    what = f'shady is imported from {tmp_path / "other" / "shady"}, not from the installed shady-pip 1.0'
    mend = f'remove {tmp_path / "other"} from PYTHONPATH'
    assert problems('other', 'site', pythonpath='other') == []  # as clusters stack environments
    monkeypatch.setattr(doctor, '_static_problems', lambda: ['shady 9.9 does not fit', 'nor does it here'])
    assert (
        problems('other', 'site', pythonpath='other', layers=True)
        == [*doctor.find_problems()]
        == [(what, mend)]
    )
    assert installation.versions_of([name]) == f'{name} 9.9'  # which Python imports


def test_an_environment_over_another_or_an_editable_installation_hides_nothing(shadows):
    install, problems = shadows
    assert problems('site') == []
    install('user', 'shady/__init__.py', '9.9')
    assert problems('user', 'site') == []
    install('checkout', 'shady/__init__.py')
    install('editable', '__editable__.pth', '1.1')
    assert problems('checkout', 'editable', 'site', pythonpath='checkout') == []


@pytest.mark.parametrize(
    ('problems', 'code', 'last'),
    [
        ([], 0, 'all of it fits together'),
        ([doctor.Problem('x is y', 'pip z')], 1, 'then run mmhcg doctor again'),
    ],
)
def test_the_exit_code_says_whether_something_is_to_be_mended(monkeypatch, capsys, problems, code, last):
    monkeypatch.setattr(doctor, 'find_problems', lambda: iter(problems))
    monkeypatch.setattr(doctor, 'operators', lambda all_names: iter(()))
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
    assert f'mmengine is imported from {tmp_path / "mmengine"}, not from the installed ' in run.stdout


def test_this_installation_is_sound(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main([])
    out = capsys.readouterr().out
    assert end.value.code == 0, out
    assert 'all of it fits together' in out
    assert re.search(r'foolbox +(foolbox [\d.]+|not installed, optional: \[attack\])\n', out)
