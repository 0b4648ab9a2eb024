"""`orchard-jit list`: what is in the cache and in the prebuilt folders."""

from __future__ import annotations

import argparse
import time
from datetime import datetime, timezone
from itertools import groupby

from orchard_jit.commands import options
from orchard_jit.commands.console import SHOWN_DIGITS, bytes_text, columns, count_text, fitted, print_json
from orchard_jit.jit import roots
from orchard_jit.jit.store import Entry

DESCRIPTION = (
    "Every library in the cache and in the prebuilt folders: key, size, age, seconds that it took, name."
)
EXAMPLE = "orchard-jit list"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    options.add_json(verb)


def run(*, as_json: bool) -> int:
    """Print the entries of all stores that a call would search."""
    stores = [(store, list(store.entries())) for store in roots.search_stores()]
    if as_json:
        print_json(
            [{**described(entry), "writable": store.writable} for store, found in stores for entry in found]
        )
        return 0
    for store, entries in stores:
        kind = "cache" if store.writable else "read-only"
        print(f"{store.root} ({kind}): {count_text(len(entries), 'library')}")
        for shelf, group in groupby(entries, key=lambda entry: entry.shelf):
            print(f"  {shelf}")
            for line in columns([_row(entry) for entry in group]):
                print(fitted(f"    {line}"))
    if not stores:
        print(f"no cache yet; it will be {roots.cache_root()}")
    return 0


def described(entry: Entry) -> dict[str, object]:
    """An entry for a program to read."""
    manifest = entry.manifest
    return {
        "key": entry.key,
        "name": entry.title,
        "shelf": entry.shelf,
        "size": manifest["size"],
        "built": datetime.fromtimestamp(manifest["created"], timezone.utc).isoformat(),
        "used": datetime.fromtimestamp(entry.used, timezone.utc).isoformat(),
        "build_seconds": manifest["build_seconds"],
        "directory": str(entry.directory),
    }


def _row(entry: Entry) -> tuple[str, ...]:
    manifest = entry.manifest
    return (
        entry.key[:SHOWN_DIGITS],
        f"{bytes_text(manifest['size']):>8}",
        f"{_age(time.time() - manifest['created']):>6}",
        f"{manifest['build_seconds']:5.1f} s",
        entry.title,
    )


def _age(seconds: float) -> str:
    """As "5 min", "3 h", "8 d"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
