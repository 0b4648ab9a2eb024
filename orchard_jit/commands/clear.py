"""`orchard-jit clear`: an empty cache."""

from __future__ import annotations

import argparse
import sys

from orchard_jit.commands import options
from orchard_jit.commands.console import UsageError
from orchard_jit.commands.removal import Removal
from orchard_jit.jit import roots
from orchard_jit.jit.eviction import Candidate

DESCRIPTION = (
    "Remove every library from the cache, after a question. Prebuilt folders are left alone, and so are "
    "libraries that running programs hold, unless --all says otherwise."
)
EXAMPLE = "orchard-jit clear --dry-run"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("--yes", action="store_true", help="ask nothing")
    verb.add_argument("--all", action="store_true", dest="even_held", help="also what running programs hold")
    verb.add_argument("--dry-run", action="store_true", help="say what would be removed")
    options.add_json(verb)


def run(*, yes: bool, even_held: bool, dry_run: bool, as_json: bool) -> int:
    """Remove everything from the cache. 1 if something is in use and stays, or if the answer is no."""
    if as_json and not (yes or dry_run):
        raise UsageError("--json asks no question: say --yes to remove, or --dry-run to look")
    store = roots.cache_store()
    candidates = [Candidate(entry, entry.disk_bytes, "all go") for entry in store.entries()]
    readable = {candidate.entry.directory for candidate in candidates}
    unreadable = [directory for directory in store.directories() if directory not in readable]
    rests = [*store.leftovers(), *store.kept(), *store.old_layouts(), *unreadable]
    removal = Removal(store, candidates, rests, even_held)
    if dry_run:
        return removal.foreseen().report(as_json=as_json)
    if (candidates or rests) and not (yes or _agreed(removal)):
        print("nothing removed")
        return 1
    return removal.run().report(as_json=as_json)


def _agreed(removal: Removal) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here: say --yes to remove, or --dry-run to look")
    answer = input(f"Remove {removal.foreseen()} from {removal.store.root}? [y/N] ")
    return answer.strip().lower() in ("y", "yes")
