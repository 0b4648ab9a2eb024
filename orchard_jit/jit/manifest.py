"""What is written beside a library, and what of it may be believed.

A manifest is written by us, and read as if it were not: a field that is missing, of another type, or that
leads out of its folder makes the entry a damaged one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchard_jit.jit import files, trust
from orchard_jit.jit.trust import Damage

FILE = "manifest.json"

_MOST_BYTES = 4_000_000
_LAST_SECOND = 250_000_000_000
"""In the year 9892. Python has no later dates."""


def read(directory: Path, *, chosen: bool = False) -> dict[str, Any]:
    """The manifest of the entry in a folder; `chosen` is as in `trust`.

    Raises:
        FileNotFoundError: There is no entry, or not yet.
        Damage: It can't be trusted or read, or it lies.

    """
    path = directory / FILE
    with trust.opened(path, chosen=chosen) as descriptor:
        content = files.beginning(descriptor, _MOST_BYTES)
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damage(f"{path} can't be read: {error}") from None
    return checked(manifest, path, directory.parent.name, directory.name)


def checked(manifest: Any, path: Path, shelf: str, key: str) -> dict[str, Any]:
    """The manifest, if it is one, of that key on that shelf.

    Raises:
        Damage: What is wrong with it, and its `path`.

    """
    if not isinstance(manifest, dict):
        raise Damage(f"{path} holds no object")
    for name, is_good in _FIELDS.items():
        if not is_good(manifest.get(name)):
            raise Damage(f"{path}: {name} can't be {manifest.get(name)!r:.60}")
    if (manifest["shelf"], manifest["key"]) != (shelf, key):
        raise Damage(f"{path} is that of {manifest['shelf']}/{manifest['key']}")
    return manifest


def text(manifest: Mapping[str, Any]) -> str:
    """As it is written."""
    return json.dumps(manifest, indent=2, sort_keys=True) + "\n"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and value != ""


def _is_file_name(value: Any) -> bool:
    return _is_text(value) and "/" not in value and value not in (".", "..")


def _is_number(most: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and 0 <= value <= most


def _is_spec(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) == 1
        and all(isinstance(inner, dict) for inner in value.values())
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "title": _is_text,
    "key": _is_text,
    "shelf": _is_text,
    "library": _is_file_name,
    "size": lambda value: type(value) is int and value >= 0,
    "sha256": _is_text,
    "spec": _is_spec,
    "build_seconds": _is_number(most=1e9),
    "created": _is_number(most=_LAST_SECOND),
}
"""What every manifest has, and can be relied on. Beside it are `key_inputs` and `toolchain`, for people."""
