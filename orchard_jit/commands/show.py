"""`orchard-jit show`: everything that is known of one entry."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from orchard_jit.commands import options
from orchard_jit.commands.console import bytes_text, columns, print_json
from orchard_jit.errors import CacheError
from orchard_jit.jit import roots
from orchard_jit.jit.store import Entry
from orchard_jit.jit.trust import Damage

DESCRIPTION = (
    "The manifest of one library: what it is, its flags, compiler and files, and whether it is whole."
)
EXAMPLE = "orchard-jit show 6476ef"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("entry", metavar="KEY_OR_NAME", help="the beginning of its key, or its name")
    options.add_json(verb)


def run(*, entry: str, as_json: bool) -> int:
    """Print the manifest of the entry with that key, prefix of a key, or name. 1 if it is damaged."""
    found = _only_match(entry)
    damage = None
    try:
        found.verify()
    except Damage as fault:
        damage = str(fault)
    if as_json:
        print_json({"directory": str(found.directory), "damage": damage, "manifest": dict(found.manifest)})
    else:
        _print(found, damage)
    return 1 if damage else 0


def _only_match(wanted: str) -> Entry:
    entries = [entry for store in roots.search_stores() for entry in store.entries()]
    # A key in two stores is the same library; the first store is the one that a call would take it from.
    matches = {
        entry.key: entry
        for entry in reversed(entries)
        if entry.key.startswith(wanted) or wanted == entry.title
    }
    if len(matches) == 1:
        return next(iter(matches.values()))
    if not matches:
        raise CacheError(
            f"no entry has a key that begins with {wanted!r}, or that name; see `orchard-jit list`"
        )
    listed = "\n".join(f"  {entry.key}  {entry.title}" for entry in matches.values())
    raise CacheError(f"{wanted!r} fits {len(matches)} entries; give more of the key:\n{listed}")


def _print(entry: Entry, damage: str | None) -> None:
    manifest = entry.manifest
    built = datetime.fromtimestamp(manifest["created"]).astimezone()
    used = datetime.fromtimestamp(entry.used).astimezone()
    rows = [
        ("key", entry.key),
        ("shelf", entry.shelf),
        ("folder", str(entry.directory)),
        ("library", f"{entry.library.name}, {bytes_text(manifest['size'])}"),
        ("sha256", manifest["sha256"]),
        ("state", f"damaged: {damage}" if damage else "whole"),
        ("built", f"{built:%Y-%m-%d %H:%M:%S %z}, in {manifest['build_seconds']:.1f} s"),
        ("last used", f"{used:%Y-%m-%d}"),
        *_noted(manifest.get("toolchain"), ("CXX", "compiler", "torch")),
        *_noted(manifest.get("key_inputs"), ("compile_flags", "link_flags", "sources")),
    ]
    ((kind, spec),) = manifest["spec"].items()
    rows += [
        (f"{kind}.{name}", value if isinstance(value, str) else json.dumps(value))
        for name, value in spec.items()
    ]
    print(entry.title)
    for line in columns(rows):
        print(f"  {line}")


def _noted(values: Any, names: Sequence[str]) -> list[tuple[str, str]]:
    """What is written for people: it is there or not, and of any type."""
    if not isinstance(values, dict):
        return []
    return [(name, _text(values[name])) for name in names if values.get(name)]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return shlex.join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value)
