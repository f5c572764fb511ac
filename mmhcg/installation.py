"""What is installed, by its metadata and files alone: nothing of it is imported."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import Distribution, distributions, requires
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

# Each with the names under which it is published; the second of OpenMMLab's are the fork's.
WANTED = {
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'numpy': ('numpy',),
    'cv2': ('opencv-python', 'opencv-python-headless', 'opencv-contrib-python'),
    'setuptools': ('setuptools',),
    'safetensors': ('safetensors',),
    'mmengine': ('mmengine', 'onedl-mmengine', 'mmengine-lite'),
    'mmcv': ('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
}
# What to install in place of what is broken and has no version of its own to return to
GOOD = {'mmcv': 'mmcv-lite==2.1.0', 'mmdet': 'mmdet==3.3.0', 'mmengine': 'mmengine==0.10.7'}
GOOD |= {'cv2': 'opencv-python-headless', 'setuptools': "'setuptools<81'"}  # the former needs no libGL

DOCTOR = '`mmhcg doctor` says what does not fit, and the command that mends it'


def places_of(name: str) -> tuple[Path, Path]:
    """Where this package's folder `configs` or `tools` may lie: MIM's place in wheels, beside the source."""
    package = Path(__file__).parent
    return package / '.mim' / name, package.parent / name


def required_by(extra: str) -> list[str]:
    """What an extra of this package brings, as pip takes it."""
    texts = (requires('mmhcg') if version_of('mmhcg') else None) or ()
    found = (re.match(rf'([^;]+);.*extra == ["\']{extra}["\']', text) for text in texts)
    return [m[1].strip() for m in found if m]


def hint(extra: str) -> str:
    """The command that installs what an extra brings, be this package a checkout or from a wheel."""
    return f'pip install {shlex.join(required_by(extra) or ["-e", f".[{extra}]"])}'


def reinstall(module: str) -> str:
    """The command that brings back the version that is installed, else one that is known to work."""
    names = ('torch', 'torchvision') if module in ('torch', 'torchvision') else WANTED.get(module, (module,))
    found = [f'{each.metadata["Name"]}=={each.version.partition("+")[0]}' for each in installed(names)]
    good = [GOOD[module]] if module == 'cv2' else found or [GOOD.get(module, names[0])]
    return f'pip install --force-reinstall --no-deps {" ".join(good)}'


def folder_of(module: str) -> Path | None:
    """Where an installed package lies; folders that only have its name are none."""
    origin = origin_of(module)
    return origin and origin.parent


def origin_of(module: str) -> Path | None:
    """The file that an import would run."""
    spec = find_spec(module)
    return None if spec is None or spec.origin is None else Path(spec.origin)


def is_damaged(path: Path) -> bool:
    try:
        ast.parse(path.read_text(encoding='utf-8'))
    except (SyntaxError, ValueError):
        return True
    return False


def _everywhere() -> dict[str, list[Distribution]]:
    """All distributions by their names, each in the order of the path: Python takes the first."""
    known: dict[str, list[Distribution]] = {}
    for found in distributions():
        with suppress(Exception):  # what was removed in part may have lost its metadata
            known.setdefault(_canonical(found.metadata['Name']), []).append(found)
    return known


def installed(names: Iterable[str]) -> list[Distribution]:
    known = _everywhere()
    return [known[name][0] for name in names if name in known]


def homes_of(module: str) -> dict[Path, Distribution]:
    """The files that distributions have installed as this module.

    Empty where one of them does not list its files, as after `pip install -e`: they may be anywhere.
    """
    known, file = _everywhere(), PurePosixPath(module, '__init__.py')
    found = [each for name in WANTED[module] for each in known.get(name, ())]
    if not all(file in (each.files or ()) for each in found):
        return {}
    return {Path(str(each.locate_file(file))).resolve(): each for each in found}


def versions_of(names: Iterable[str]) -> str:
    return ', '.join(f'{found.metadata["Name"]} {found.version}' for found in installed(names))


def _canonical(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def version_of(name: str) -> str | None:
    """Without what is behind `+`, the kind of GPU it is built for."""
    found = installed([name])
    return found[0].version.partition('+')[0] if found else None


def pinned(name: str, dependency: str) -> str | None:
    """The one version of a dependency that a distribution wants."""
    texts = (requirement.partition(';')[0] for requirement in requires(name) or ())
    return next(
        (m[1] for m in (re.match(rf'{dependency} ?\(?==([\d.]+)', text) for text in texts) if m), None
    )


def numbers_of(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version)[:2])


def bounds_of_mmdet() -> dict[str, tuple[str, str]]:
    """The least version of mmcv and mmengine that mmdet takes, and the first that it refuses."""
    folder = folder_of('mmdet')
    if folder is None or not (folder / '__init__.py').is_file():
        return {}
    text = (folder / '__init__.py').read_text(encoding='utf-8')
    found = dict(re.findall(r"^(\w+_(?:minimum|maximum)_version) = '([\w.]+)'", text, re.M))
    names = [(f'{module}_minimum_version', f'{module}_maximum_version') for module in ('mmcv', 'mmengine')]
    return {
        least.partition('_')[0]: (found[least], found[below])
        for least, below in names
        if least in found and below in found
    }


def operator_names(mmcv: Path) -> set[str]:
    """The functions that `mmcv/ops/*.py` want of compiled mmcv; files that do not parse are passed over."""
    names = set()
    for path in (mmcv / 'ops').glob('*.py'):
        if is_damaged(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
                names.update(ast.literal_eval(node.args[1]))
    return names
