"""Which entries of the stores a command is about: all, or those of some names on some shelves."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatchcase

from orchard_jit.errors import CacheError
from orchard_jit.jit import roots
from orchard_jit.jit.entry import Entry


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `chosen`."""
    verb.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="these entries: a name, with * for any part of it, or the beginning of a key (default: all)",
    )
    verb.add_argument(
        "--shelf",
        default="*",
        metavar="NAME",
        help="those of this folder of the cache, as linux-x86_64 or 'torch2.13*' (default: all)",
    )


def chosen(names: Sequence[str], shelf: str) -> list[Entry]:
    """Whole entries of all stores that a call would search, each key once.

    Raises:
        CacheError: A name fits none, or an entry is damaged.

    """
    found = {
        (entry.shelf, entry.key): (store, entry)
        for store in reversed(roots.search_stores())  # of two, a call would take that of the first store
        for entry in store.entries()
        if fnmatchcase(entry.shelf, shelf)
    }
    for name in names or ["*"]:
        if not any(_is_named(entry, name) for _, entry in found.values()):
            raise CacheError(
                f"no entry has the name {name!r}, or a key that begins with it"
                if names
                else f"nothing is compiled{'' if shelf == '*' else f' on a shelf {shelf!r}'}"
            )
    wanted = [
        (store, entry)
        for store, entry in found.values()
        if any(_is_named(entry, name) for name in names or ["*"])
    ]
    for store, entry in wanted:
        if damage := entry.damage(chosen=store.chosen):
            raise CacheError(f"an entry is damaged: {damage}")
    return sorted((entry for _, entry in wanted), key=lambda entry: (entry.shelf, entry.title, entry.key))


def _is_named(entry: Entry, name: str) -> bool:
    return entry.key.startswith(name) or fnmatchcase(entry.title, name)
