"""`orchard-jit clear`: an empty cache."""

from __future__ import annotations

import argparse
import sys

from orchard_jit.commands import options
from orchard_jit.commands.console import SHOWN_DIGITS, UsageError, bytes_text, count_text, fitted, print_json
from orchard_jit.jit import roots
from orchard_jit.jit.store import Entry, Store

DESCRIPTION = (
    "Remove every library from the cache, after a question. Prebuilt folders are left alone, and programs "
    "that run now are not disturbed."
)
EXAMPLE = "orchard-jit clear --dry-run"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("--yes", action="store_true", help="ask nothing")
    verb.add_argument("--dry-run", action="store_true", help="say what would be removed")
    options.add_json(verb)


def run(*, yes: bool, dry_run: bool, as_json: bool) -> int:
    """Remove the entries of the cache; prebuilt folders stay as they are."""
    doomed = [
        (store, entry) for store in roots.search_stores() if store.writable for entry in store.entries()
    ]
    sizes = [_bytes(entry) for _, entry in doomed]
    if as_json and not (yes or dry_run):
        raise UsageError("--json asks no question: say --yes to remove, or --dry-run to look")
    if doomed and not (yes or dry_run or _agreed(doomed, sum(sizes))):
        print("nothing removed")
        return 1
    if not dry_run:
        for store, entry in doomed:
            store.remove(entry)
    if as_json:
        keys = [entry.key for _, entry in doomed]
        print_json({"removed": not dry_run, "keys": keys, "entries": len(keys), "bytes": sum(sizes)})
        return 0
    if dry_run:
        for (_, entry), size in zip(doomed, sizes, strict=True):
            print(fitted(f"{entry.key[:SHOWN_DIGITS]}  {bytes_text(size):>8}  {entry.manifest['title']}"))
    done = "would be removed" if dry_run else "removed"
    print(f"{_sum(doomed, sum(sizes))} {done} from {roots.cache_root()}")
    return 0


def _agreed(doomed: list[tuple[Store, Entry]], size: int) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here: say --yes to remove, or --dry-run to look")
    answer = input(f"Remove {_sum(doomed, size)} from {roots.cache_root()}? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def _sum(doomed: list[tuple[Store, Entry]], size: int) -> str:
    return f"{count_text(len(doomed), 'library')}, {bytes_text(size)}"


def _bytes(entry: Entry) -> int:
    """Of the library and what lies beside it: sources, log, manifest."""
    return sum(path.stat().st_size for path in entry.directory.rglob("*") if path.is_file())
