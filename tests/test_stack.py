"""`mmhcg.stack.prepare`, in fresh interpreters: what it provides, and what it leaves alone."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run_python(code: str, *paths: Path) -> str:
    """Output of `code` in a new interpreter that finds modules in `paths` first."""
    search = os.pathsep.join(map(str, (*paths, ROOT)))
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'PYTHONPATH': search, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def fake_mmcv(folder: Path, compiled: bool) -> Path:
    """A package `mmcv`, as of mmcv-lite or, with a module `_ext` of its own, as of compiled mmcv."""
    (folder / 'mmcv').mkdir()
    (folder / 'mmcv' / '__init__.py').touch()
    if compiled:
        (folder / 'mmcv' / '_ext.py').write_text('nms = "compiled"')
    return folder


FINDERS = """
import importlib, importlib.util, pkgutil, sys
sys.modules['mmengine'] = None  # to be quick: importing it fails now
import mmhcg.stack
mmhcg.stack.prepare()
spec = importlib.util.find_spec('mmcv._ext')
find_loader = getattr(pkgutil, 'find_loader', lambda name: spec.loader)  # gone in Python 3.14
assert find_loader('mmcv._ext') is not None
from mmcv import _ext
assert importlib.import_module('mmcv._ext') is _ext is importlib.reload(_ext)
assert _ext.__spec__.origin == spec.origin == _ext.__file__
print(_ext.__file__, _ext.nms, mmhcg.stack.has_compiled_mmcv())
"""


def test_provides_the_extension_that_mmcv_lacks(tmp_path: Path) -> None:
    output = run_python(FINDERS, fake_mmcv(tmp_path, compiled=False))
    assert output.startswith(str(ROOT / 'mmhcg' / 'stack' / 'mmcv_ops.py')) and output.endswith(' False')


def test_compiled_mmcv_stays(tmp_path: Path) -> None:
    output = run_python(FINDERS, fake_mmcv(tmp_path, compiled=True))
    assert output == f'{tmp_path / "mmcv" / "_ext.py"} compiled True'


def test_a_second_call_changes_nothing_and_nothing_is_imported_early() -> None:
    output = run_python("""
import sys
import mmhcg.stack
mmhcg.stack.prepare()
print(sorted({'mmcv', 'mmdet', 'torchvision'} & set(sys.modules)))
from mmengine.runner.checkpoint import CheckpointLoader
before = list(sys.meta_path), dict(CheckpointLoader._schemes)
mmhcg.stack.prepare()
print((sys.meta_path, CheckpointLoader._schemes) == before, sys.meta_path.count(mmhcg.stack.ExtensionFinder))
""")
    assert output.splitlines() == ['[]', 'True 1']


@pytest.mark.parametrize('absent', [['mmcv'], ['mmcv', 'mmengine', 'mmdet', 'torchvision']])
def test_works_without_openmmlab(absent: list[str]) -> None:
    """Checkpoints are safe where MMEngine is there, and no operators are given to an mmcv that is not."""
    output = run_python(f"""
import sys
sys.modules.update(dict.fromkeys({absent}))  # importing these now fails
import mmhcg.stack
mmhcg.stack.prepare()
if 'mmengine' in sys.modules and sys.modules['mmengine']:
    from mmengine.runner.checkpoint import CheckpointLoader
    print(CheckpointLoader._get_checkpoint_loader('x.pth').__module__)
try:
    import mmcv._ext
except ImportError as error:
    print(error.name)
""")
    loader = [] if 'mmengine' in absent else ['mmhcg.stack.checkpoint_sources']
    assert output.splitlines() == [*loader, 'mmcv._ext']


@pytest.mark.skipif(find_spec('mmcv') is None or find_spec('mmdet') is None, reason='needs mmcv and mmdet')
def test_detectors_can_be_imported_even_after_mmcv_ops_has_failed() -> None:
    output = run_python("""
import mmcv
try:
    import mmcv.ops
except ImportError:
    pass
import mmhcg
import mmdet.models
from mmengine.utils.dl_utils import mmcv_full_available
print(mmcv_full_available())
""")
    assert output.endswith('True')
