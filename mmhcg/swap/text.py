"""A swapped config as a file: `_base_`, and what is different."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmengine.config import Config

from mmhcg.runs.config import detector_of
from mmhcg.runs.errors import UserError
from mmhcg.weights.files import WeightsError, check_new

LINE = 100  # characters of a written config
ADVICE = 'To change more, inherit from this file: a second `model = ...` in it would replace the one below.'


def config_text(base: str, old: Config, new: Config, out: str | Path | None = None) -> str:
    """A config file that inherits from `base`, which holds `old`, and says what is different in `new`.

    Where `base` is a file it stands there as given, or by the path to it from the file `out`: an absolute
    one where a link is on the way, for MMEngine drops a folder before `..` without looking where it leads.

    Raises:
        UserError: The file would not be read as `new`.
    """
    body = _body(old, new)
    if '::' in base:
        _check(base, base, new, body)
        path = base
    else:
        _check(base, os.path.abspath(base), new, body)
        path = Path(_path_from(Path(out).parent, base) if out else base).as_posix()
    title = f'HCGNet-{detector_of(new).backbone.arch.upper()} in {path}'
    return f'"""{title}\n\n{ADVICE}\n"""\n\n_base_ = {path!r}\n\n{body}'


def _path_from(folder: Path, base: str) -> str:
    near, real = (os.path.relpath(f(base), f(folder)) for f in (os.path.abspath, os.path.realpath))
    return near if near == real else os.path.abspath(base)


def check_out(out: str | Path) -> None:
    """Raises UserError unless `out` names a new `.py` file."""
    try:
        check_new(out, ['.py'])
    except (WeightsError, OSError) as error:
        raise UserError(str(error)) from error


def write_config(text: str, out: str | Path) -> None:
    """Write the text to a new `.py` file, in a new folder where need be; UserError where that fails."""
    check_out(out)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with Path(out).open('x', encoding='utf-8') as file:
            file.write(text)
    except OSError as error:
        raise UserError(str(error)) from error


def _check(base: str, path: str, new: Config, body: str) -> None:
    """Read the file as it would be, for a base may be in pure Python, from which no text can inherit."""
    with TemporaryDirectory() as folder:
        heir = Path(folder, 'heir.py')
        heir.write_text(f'_base_ = {path!r}\n{body}', encoding='utf-8')
        try:
            read, fault = Config.fromfile(heir).model, 'it reads differently'
        except Exception as error:  # of any config
            read, fault = None, f'{type(error).__name__}: {error}'
    if read is None or _without_scopes(read.to_dict()) != _without_scopes(new.model.to_dict()):
        raise UserError(
            f'no file can inherit from {base}: {fault}. To write the whole config instead, in Python: '
            f'mmhcg.swap_backbone({base!r}).dump("my_detector.py")'
        )


def _body(old: Config, new: Config) -> str:
    difference = _difference(old.model.to_dict(), new.model.to_dict())
    return f'model = {_text(difference)}\n' + ('load_from = None\n' if old.get('load_from') else '')


def _text(value: Any, indent: int = 0) -> str:
    """A value as it stands in a config file, on one line where it fits."""
    if not isinstance(value, (dict, list, tuple)) or not value:
        return repr(value)
    if isinstance(value, dict):
        items = [f'{key}={_text(child, indent + 4)}' for key, child in value.items()]
        start, end = 'dict(', ')'
    else:
        items = [_text(child, indent + 4) for child in value]
        start, end = '[]' if isinstance(value, list) else ('(', ',)' if len(value) == 1 else ')')
    line = f'{start}{", ".join(items)}{end}'
    if len(line) + indent < LINE:  # which no line of several is
        return line
    return (
        f'{start}\n'
        + ''.join(f'{" " * (indent + 4)}{item},\n' for item in items)
        + f'{" " * indent}{end[-1]}'
    )


def _difference(old: dict, new: dict) -> dict:
    """The entries of `new` that are not those of `old`; a backbone whole, as nothing of the old one stays."""
    changed = {}
    for key, value in new.items():
        if key == 'backbone' and value != old[key]:
            changed[key] = {'_delete_': True, **value}
        elif isinstance(value, dict) and isinstance(old.get(key), dict):
            if below := _difference(old[key], value):
                changed[key] = below
        elif key not in old or value != old[key]:
            changed[key] = _without_scopes(value)
    return changed


def _without_scopes(node: Any) -> Any:
    """Without `_scope_`, MMEngine's note of where a type comes from."""
    if isinstance(node, dict):
        return {key: _without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(_without_scopes, node)) if isinstance(node, (list, tuple)) else node
