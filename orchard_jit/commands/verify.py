"""`orchard-jit verify`: is every library what its manifest says?"""

from __future__ import annotations

import argparse

from orchard_jit.commands import options
from orchard_jit.commands.console import count_text, mark, print_json, wrapped
from orchard_jit.jit import roots

DESCRIPTION = (
    "Read every library in the cache and in the prebuilt folders and compare it with its manifest. A damaged "
    "one in the cache is set aside, to be compiled again when it is needed; in a prebuilt folder it is named."
)
EXAMPLE = "orchard-jit verify --dry-run"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("--dry-run", action="store_true", help="set nothing aside")
    options.add_json(verb)


def run(*, dry_run: bool, as_json: bool) -> int:
    """Verify all entries of all stores. 1 if any is damaged."""
    found = []
    whole = 0
    for store in roots.search_stores():
        damaged = dict(store.damaged())
        whole += sum(entry.directory not in damaged for entry in store.entries())
        for directory, fault in damaged.items():
            aside = store.writable and not dry_run and store.move_aside(directory)
            found.append({"directory": str(directory), "damage": fault, "set_aside": aside})
    if as_json:
        print_json({"whole": whole, "damaged": found})
        return 1 if found else 0
    for one in found:
        for line in wrapped(f"{one['damage']}{' (set aside)' if one['set_aside'] else ''}", 2):
            print(f"{mark('problem')} {line}")
    print(f"{count_text(whole, 'library')} whole, {len(found)} damaged")
    return 1 if found else 0
