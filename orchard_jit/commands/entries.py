"""Which entries of the stores a command is about: all, those of some names, or those of a file of kernels."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from orchard_jit.commands import kernels
from orchard_jit.commands.console import SHOWN_DIGITS, UsageError, columns, fitted
from orchard_jit.errors import CacheError
from orchard_jit.jit import roots
from orchard_jit.jit.entry import Entry
from orchard_jit.jit.eviction import why_stale
from orchard_jit.jit.recipe import for_binding, for_variant
from orchard_jit.jit.trust import Damage

Entries = Mapping[tuple[str, str], Entry]
"""By shelf and key."""


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `chosen`."""
    verb.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="these entries: a name, with * for any part of it, or the beginning of a key (default: all)",
    )
    verb.add_argument(
        "--only",
        type=Path,
        metavar="FILE",
        help="the kernels of this file, as `orchard-jit record` writes it, and the operators",
    )
    verb.add_argument(
        "--shelf",
        default="*",
        metavar="NAME",
        help="those of this folder of the cache, as linux-x86_64 or 'torch2.13*' (default: all)",
    )


def chosen(names: Sequence[str], shelf: str, only: Path | None) -> list[Entry]:
    """Whole entries of all stores that a call would search, each key once.

    Raises:
        UsageError: There are both names and a file, or the file can't be read.
        CacheError: A name fits none, a kernel of the file is not compiled, or an entry is damaged.

    """
    if names and only:
        raise UsageError(f"{only} says which entries; leave out {' '.join(names)}")
    found = {
        (entry.shelf, entry.key): entry
        for store in reversed(roots.search_stores())  # of two, a call would take that of the first store
        for entry in store.entries()
        if fnmatchcase(entry.shelf, shelf)
    }
    wanted = _of_file(only, found) if only else _named(names or ["*"], found)
    if not wanted:
        raise CacheError(f"nothing is compiled{'' if shelf == '*' else f' on a shelf {shelf!r}'}")
    for entry in wanted:
        try:
            entry.verify()
        except Damage as damage:
            raise CacheError(f"an entry is damaged: {damage}; run: orchard-jit verify") from None
    return sorted(wanted, key=lambda entry: (entry.shelf, entry.title, entry.key))


def print_all(entries: Sequence[Entry]) -> None:
    """A line for each, and how many of them are of no use here."""
    for line in columns([(entry.key[:SHOWN_DIGITS], entry.shelf, entry.title) for entry in entries]):
        print(fitted(line))
    if stale := sum(why_stale(entry) is not None for entry in entries):
        print(f"{stale} of other versions of orchard_jit or torch: see orchard-jit prune --stale")


def _of_file(path: Path, found: Entries) -> list[Entry]:
    """What the file lists, and the operators, which every kernel needs."""
    recipes = [for_binding(), *map(for_variant, kernels.variants(path))]
    if missing := [recipe for recipe in recipes if (recipe.shelf, recipe.key) not in found]:
        raise CacheError(
            f"not compiled: {', '.join(recipe.title for recipe in missing)}; run: orchard-jit prebuild {path}"
        )
    return list({recipe.key: found[recipe.shelf, recipe.key] for recipe in recipes}.values())


def _named(names: Sequence[str], found: Entries) -> list[Entry]:
    for name in names:
        if found and not any(_is_named(entry, name) for entry in found.values()):
            raise CacheError(f"no entry has the name {name!r}, or a key that begins with it")
    return [entry for entry in found.values() if any(_is_named(entry, name) for name in names)]


def _is_named(entry: Entry, name: str) -> bool:
    return entry.key.startswith(name) or fnmatchcase(entry.title, name)
