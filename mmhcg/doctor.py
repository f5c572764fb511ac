"""What is installed, what does not fit together, and the command that mends it: python -m mmhcg.doctor

It looks at files and versions before it imports anything, so that it has an answer where an import fails.
"""

from __future__ import annotations

import argparse
import ast
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import Distribution, distributions, requires
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

PACKAGE = Path(__file__).parent
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
STANDALONE = "pip install 'mmhcg[standalone]'  # in a checkout: pip install -e '.[standalone]'"


class Problem(NamedTuple):
    """What does not fit, and the command that mends it."""

    what: str
    mend: str


def main(argv: list[str] | None = None) -> None:
    """Print the report; exit code 1 where something has to be mended."""
    parser = argparse.ArgumentParser(
        prog='python -m mmhcg.doctor',
        description='What is installed, what does not fit together, and the command that mends it. '
        'Exit code 0: all fits; 1: something has to be mended.',
    )
    parser.add_argument('--all', action='store_true', help="list all of mmcv's operators that are missing")
    args = parser.parse_args(argv)
    print(f'Python {platform.python_version()}, {platform.platform()}')
    for module, names in WANTED.items():
        print(f'  {module:12} {_versions(names) or "not installed"}')
    print(f'  {"mmhcg":12} {_versions(["mmhcg"]) or "not installed"}, in {PACKAGE}')
    for name, extra in optional():
        print(f'  {name:12} {_versions([name]) or f"not installed, optional: [{extra}]"}')
    problems = list(find_problems())
    for problem in problems:
        print(f'\nproblem: {problem.what}\n   mend: {problem.mend}')
    print(f'\n{len(problems)} problems' if problems else '\nall of it fits together')
    for line in operators(args.all):
        print(f'\n{line}')
    sys.exit(1 if problems else 0)


def optional() -> Iterator[tuple[str, str]]:
    """What the extras bring that only some of the tools need, each with the name of its extra."""
    for text in requires('mmhcg') or ():
        found = re.match(r'([\w.-]+).*extra == ["\'](pretrain|attack|export)', text)
        if found:
            yield found[1], found[2]


def find_problems() -> Iterator[Problem]:
    """Everything that keeps HCGNet from running in MMDetection here, most basic first."""
    yield from _several_distributions()
    yield from _versions_that_do_not_fit()
    stale = PACKAGE / '.mim'
    if stale.is_dir() and (PACKAGE.parent / 'setup.py').is_file():
        yield Problem(
            f"{stale} is left from building a wheel and hides the checkout's configs", f'rm -r {stale}'
        )
    for module in WANTED:
        if _file(module) is None:
            yield Problem(f'{module} is not installed{_stray(module)}', STANDALONE)
        elif error := _import_error(module):
            yield Problem(f'`import {module}` fails: {error}', _reinstall(module))


def operators(list_all: bool = False) -> Iterator[str]:
    """Which of mmcv's operators are compiled, provided by this package, or missing."""
    file = _file('mmcv')
    if file is None:
        return
    folder = file.parent
    names = sorted(operator_names(folder))
    if any((folder / f'_ext{suffix}').is_file() for suffix in EXTENSION_SUFFIXES):
        yield f'mmcv operators: all {len(names)} compiled'
        return
    # Its text, because to import it takes torchvision.
    tree = ast.parse((PACKAGE / 'stack' / 'mmcv_ops.py').read_text(encoding='utf-8'))
    ours = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    targets = [node.targets[0] for node in tree.body if isinstance(node, ast.Assign)]
    ours |= {target.id for target in targets if isinstance(target, ast.Name)}
    ours |= {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    missing = [name for name in names if name not in ours]
    provided = len(names) - len(missing)
    yield (
        f'mmcv operators: none compiled, {provided} of {len(names)} provided by mmhcg. Most of the other '
        f'{len(missing)} are for rotated boxes, point clouds, GANs, text in images and single networks'
        + ('' if list_all else '; --all lists them')
    )
    if list_all:
        yield fill(', '.join(missing), 100, initial_indent='  ', subsequent_indent='  ')


def _file(module: str) -> Path | None:
    """The file that an import would run; a folder without one, which Python would take, is no library."""
    spec = find_spec(module)
    return Path(spec.origin) if spec and spec.origin else None


def _stray(module: str) -> str:
    """For a message: the folder that has the name of a library and is none."""
    spec = find_spec(module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return f'; the folder {folders[0]} is something else' if folders else ''


def operator_names(mmcv: Path) -> set[str]:
    """The functions that `mmcv/ops/*.py` want of compiled mmcv."""
    names = set()
    for path in (mmcv / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
                names.update(ast.literal_eval(node.args[1]))
    return names


def _several_distributions() -> Iterator[Problem]:
    """Two that install the same files: whichever is removed takes them from the other."""
    for module in ('mmengine', 'mmcv', 'mmdet', 'cv2'):
        found = _installed(WANTED[module])
        names = [each.metadata['Name'] for each in found]
        same = module == 'cv2' and len({each.version for each in found}) == 1  # as the fork asks for them
        if len(names) > 1 and not same:
            remove = f'pip uninstall -y {" ".join(names)}'
            yield Problem(f'{" and ".join(names)} both install {module}', f'{remove} && {_reinstall(module)}')


def _versions_that_do_not_fit() -> Iterator[Problem]:
    torch, vision, numpy = (_version(name) for name in ('torch', 'torchvision', 'numpy'))
    if torch and vision and (wanted := _pinned('torchvision', 'torch')) and wanted != torch:
        yield Problem(
            f'torchvision {vision} is built for PyTorch {wanted}, not {torch}',
            f'pip install --upgrade torchvision torch=={torch}',
        )
    if torch and numpy and _numbers(torch) < (2, 3) and _numbers(numpy) >= (2,):
        yield Problem(
            f'PyTorch {torch} is built for NumPy 1, not {numpy}', "pip install 'numpy<2' 'opencv-python<4.12'"
        )
    if _version('mmengine') and _file('pkg_resources') is None:
        yield Problem(
            "`_base_ = 'mmdet::...'` needs pkg_resources, which setuptools 82 dropped",
            "pip install 'setuptools<81'",
        )
    mmcv = next(iter(_installed(WANTED['mmcv'])), None)
    if _version('mmdet') == '3.3.0' and mmcv and _numbers(mmcv.version) >= (2, 2):
        name = mmcv.metadata['Name']
        yield Problem(
            f'mmdet 3.3.0 refuses {name} {mmcv.version}',
            f'pip uninstall -y {name} && pip install mmcv-lite==2.1.0',
        )


def _reinstall(module: str) -> str:
    names = {'mmcv': 'mmcv-lite==2.1.0', 'mmdet': 'mmdet==3.3.0', 'mmengine': 'mmengine==0.10.7'}
    names['cv2'] = 'opencv-python-headless'  # the other needs libGL
    return f'pip install --force-reinstall --no-deps {names.get(module, WANTED[module][0])}'


def _import_error(module: str) -> str | None:
    try:
        if module == 'mmdet':
            import_module('mmhcg')  # provides mmcv's operators
            import_module('mmdet.models')
        import_module(module)
    except Exception as error:  # whatever is wrong with it
        return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ""}'
    return None


def _installed(names: Iterable[str]) -> list[Distribution]:
    known = {_canonical(found.metadata['Name'] or ''): found for found in distributions()}
    return [known[name] for name in names if name in known]


def _versions(names: Iterable[str]) -> str:
    return ', '.join(f'{found.metadata["Name"]} {found.version}' for found in _installed(names))


def _canonical(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def _version(name: str) -> str | None:
    """Without what is behind `+`, the kind of GPU it is built for."""
    found = _installed([name])
    return found[0].version.partition('+')[0] if found else None


def _pinned(name: str, dependency: str) -> str | None:
    """The one version of a dependency that a distribution wants."""
    texts = (requirement.partition(';')[0] for requirement in requires(name) or ())
    return next(
        (m[1] for m in (re.match(rf'{dependency} ?\(?==([\d.]+)', text) for text in texts) if m), None
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version)[:2])


if __name__ == '__main__':
    main()
