"""What is installed, what does not fit together, and the command that mends it: `mmhcg doctor`

It looks at files and versions before it imports anything, so that it has an answer where an import fails.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import re
import sys
import traceback
from collections.abc import Iterator
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

from mmhcg.installation import (
    GOOD,
    WANTED,
    bounds_of_mmdet,
    folder_of,
    hint,
    homes_of,
    installed,
    is_damaged,
    numbers_of,
    operator_names,
    origin_of,
    pinned,
    reinstall,
    required_by,
    version_of,
    versions_of,
)

PACKAGE = Path(__file__).parent
CONFIG = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', 'mask_rcnn_hcgnet_b_fpn_1x_coco'  # of mmdet, and ours


class Problem(NamedTuple):
    """What does not fit, and the command that mends it."""

    what: str
    mend: str


def main(argv: list[str] | None = None) -> None:
    """Print the report; exit code 1 where something has to be mended."""
    parser = argparse.ArgumentParser(
        prog='mmhcg doctor',
        description='What is installed, what does not fit together, and the command that mends it. '
        'Exit code 0: all fits; 1: something has to be mended.',
    )
    parser.add_argument('--all', action='store_true', help="name each of mmcv's operators that is missing")
    options = parser.parse_args(argv)
    print(f'Python {platform.python_version()}, {platform.platform()}')
    for module, names in WANTED.items():
        print(f'  {module:12} {versions_of(names) or "not installed"}')
    print(f'  {"mmhcg":12} {version_of("mmhcg") or "not installed"}, in {PACKAGE}')
    for name, extra in optional():
        print(f'  {name:12} {versions_of([name]) or f"not installed, optional: [{extra}]"}')
    problems = list(find_problems())
    for problem in problems:
        print(f'\nproblem: {problem.what}\n   mend: {problem.mend}')
    print('\nthen run mmhcg doctor again' if problems else '\nall of it fits together')
    for line in operators(options.all):
        print(f'\n{line}')
    sys.exit(1 if problems else 0)


def optional() -> Iterator[tuple[str, str]]:
    """What the extras bring that only some of the tools need, each with the name of its extra."""
    for extra in ('pretrain', 'export', 'attack'):
        for text in required_by(extra):
            yield re.split(r'[^\w.-]', text)[0], extra


def find_problems() -> Iterator[Problem]:
    """What keeps HCGNet from running in MMDetection here, of the first kind that there is.

    Shadows come first, then files and versions, imports, configs: each may fail because of what is before it.
    One environment over another, as clusters stack them, is a problem only where something fails.
    """
    for kind in (_shadows, _static_problems, _import_problems, _config_problems):
        found = list(kind())
        yield from found and (list(_shadows(layers=True)) or found)
        if found:
            return


def operators(all_names: bool = False) -> Iterator[str]:
    """Which of mmcv's operators are compiled, provided by this package, or missing."""
    folder = folder_of('mmcv')
    if folder is None:
        return
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
    provided = f'{len(names) - len(missing)} of {len(names)} provided by mmhcg'
    kinds = '' if all_names else ' (--all names them) are those of rotated boxes, point clouds and the like'
    yield f'mmcv operators: none compiled, {provided}. Missing{kinds}:'.removesuffix(':' if kinds else '')
    if all_names:
        yield fill(', '.join(missing), 100, initial_indent='  ', subsequent_indent='  ')


def _shadows(layers: bool = False) -> Iterator[Problem]:
    """What is imported from elsewhere than where it is installed, which installing it again does not mend."""
    search = {Path(entry).resolve() for entry in os.environ.get('PYTHONPATH', '').split(os.pathsep) if entry}
    for module in WANTED:
        origin, homes = origin_of(module), homes_of(module)
        if origin is None:
            continue
        place = origin.parent if origin.stem == '__init__' else origin
        searched, origin = place.parent.resolve() in search, origin.resolve()
        others = [f'{home.metadata["Name"]} {home.version}' for path, home in homes.items() if path != origin]
        if others and (origin not in homes or (layers and searched)):  # a layer has metadata of its own
            yield Problem(
                f'{module} is imported from {place}, not from the installed {" and ".join(others)}',
                f'remove {place.parent} from PYTHONPATH' if searched else f'rename {place}',
            )


def _static_problems() -> Iterator[Problem]:
    yield from _several_distributions()
    yield from _versions_that_do_not_fit()
    stale = PACKAGE / '.mim'
    if stale.is_dir() and (PACKAGE.parent / 'setup.py').is_file():
        yield Problem(
            f"{stale} is left from building a wheel and hides the checkout's configs", f'rm -r {stale}'
        )
    missing = [module for module in WANTED if folder_of(module) is None]
    if missing:
        stray = [Path(module).resolve() for module in missing if Path(module).is_dir()]
        there = f' ({", ".join(map(str, stray))} is only a folder of that name)' if stray else ''
        yield Problem(f'not installed: {", ".join(missing)}{there}', hint('standalone'))
    for module, names in WANTED.items():
        if module not in missing and not installed(names):
            yield Problem(f'{module} is there, but not the metadata by which pip knows it', reinstall(module))
    mmcv = folder_of('mmcv')
    for path in sorted((mmcv / 'ops').glob('*.py')) if mmcv else ():
        if is_damaged(path):
            yield Problem(f'{path} is damaged', reinstall('mmcv'))


def _several_distributions() -> Iterator[Problem]:
    """Two that install the same files: whichever is removed takes them from the other."""
    for module in ('mmengine', 'mmcv', 'mmdet', 'cv2'):
        found = installed(WANTED[module])
        names = [each.metadata['Name'] for each in found]
        same = module == 'cv2' and len({each.version for each in found}) == 1  # as the fork asks for them
        if len(names) > 1 and not same:
            mend = f'pip uninstall -y {" ".join(names)} && pip install --no-deps {GOOD[module]}'
            yield Problem(f'{" and ".join(names)} both install {module}', mend)


def _versions_that_do_not_fit() -> Iterator[Problem]:
    torch, vision, numpy = (version_of(name) for name in ('torch', 'torchvision', 'numpy'))
    if torch and vision and (wanted := pinned('torchvision', 'torch')) and wanted != torch:
        yield Problem(
            f'torchvision {vision} is built for PyTorch {wanted}, not {torch}',
            f'pip install --upgrade torchvision torch=={torch}',
        )
    if torch and numpy and numbers_of(torch) < (2, 3) and numbers_of(numpy) >= (2,):
        yield Problem(
            f'PyTorch {torch} is built for NumPy 1, not {numpy}', "pip install 'numpy<2' 'opencv-python<4.12'"
        )
    if version_of('mmengine') and find_spec('pkg_resources') is None:
        yield Problem(
            "`_base_ = 'mmdet::...'` needs pkg_resources, which setuptools 82 dropped",
            "pip install 'setuptools<81'",
        )
    for module, (least, below) in bounds_of_mmdet().items():
        for found in installed(WANTED[module])[:1]:
            if not numbers_of(least) <= numbers_of(found.version) < numbers_of(below):
                name = found.metadata['Name']
                yield Problem(
                    f'mmdet {versions_of(WANTED["mmdet"]).split()[-1]} wants {module} from {least} to below '
                    f'{below}, not {name} {found.version}',
                    f'pip uninstall -y {name} && pip install --no-deps {GOOD[module]}',
                )


def _import_problems() -> Iterator[Problem]:
    """The first import that fails: the others may fail because of it."""
    for module in WANTED:
        if error := _import_error(module):
            yield error
            return


def _import_error(module: str) -> Problem | None:
    try:
        if module == 'mmdet':
            import_module('mmhcg')  # provides mmcv's operators
            import_module('mmdet.models')
        import_module(module)
    except (Exception, SystemExit) as error:  # whatever is wrong with it
        text = str(error).strip().splitlines() or ['']
        culprit = _culprit(error) or module
        return Problem(f'`import {module}` fails: {type(error).__name__}: {text[0]}', reinstall(culprit))
    return None


def _culprit(error: BaseException) -> str | None:
    """The installed package whose code ran last when it was raised."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).parts
        if 'site-packages' in parts:
            return parts[len(parts) - parts[::-1].index('site-packages')].removesuffix('.py')
    return None


def _config_problems() -> Iterator[Problem]:
    """Whether the configs that MMDetection and this package ship can be read."""
    hub, mmhcg = import_module('mmengine.hub'), import_module('mmhcg')
    try:
        hub.get_config(f'mmdet::{CONFIG[0]}')
    except Exception as error:
        yield Problem(f"mmdet's configs cannot be read: {error}", reinstall('mmdet'))
    try:
        mmhcg.get_config(CONFIG[1])
    except Exception as error:
        yield Problem(f"mmhcg's configs cannot be read: {error}", reinstall('mmhcg'))


if __name__ == '__main__':
    main()
