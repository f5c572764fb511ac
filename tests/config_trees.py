"""Configs as plain dicts, and where two of them differ."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from tiny_run import CONFIGS


def load(name: str) -> dict:
    """The config with everything that it inherits."""
    return without_scopes(Config.fromfile(CONFIGS / name).to_dict())


def without_scopes(node: Any) -> Any:
    """MMEngine notes `_scope_`, the package that a type comes from, in what is inherited across packages."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(without_scopes, node)) if isinstance(node, (list, tuple)) else node


def differences(one: Any, other: Any, path: str = '') -> set[str]:
    """Dotted paths of what differs; a backbone counts as one thing."""
    if one == other:
        return set()
    if not (isinstance(one, dict) and isinstance(other, dict)) or path == 'model.backbone':
        return {path}
    found, absent = set(), object()
    for key in one.keys() | other.keys():
        found |= differences(one.get(key, absent), other.get(key, absent), f'{path}.{key}'.lstrip('.'))
    return found
