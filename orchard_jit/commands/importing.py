"""`orchard-jit import`: libraries that were compiled on another machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from orchard_jit.commands import options
from orchard_jit.commands.builds import require_lasting_cache
from orchard_jit.commands.console import columns, count_text, fitted, print_json
from orchard_jit.jit import bundle, roots
from orchard_jit.jit.recipe import platform_tag
from orchard_jit.jit.store import Store

DESCRIPTION = (
    "Take in an archive that `orchard-jit export` has written: into the cache, or into a folder to name in "
    "ORCHARD_JIT_PREBUILT_DIRS. All of it is verified before any of it is kept, and nothing is overwritten. "
    "It holds programs: import archives only from where you would install a package from."
)
EXAMPLE = "orchard-jit import kernels.tar.gz --into /opt/orchard_jit"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("archive", type=Path, metavar="ARCHIVE", help="a file *.tar.gz or *.tar.zst")
    verb.add_argument("--into", type=Path, metavar="FOLDER", help="this folder (default: the cache)")
    options.add_json(verb)


def run(*, archive: Path, into: Path | None, as_json: bool) -> int:
    """Unpack the archive into a store."""
    store = _store(into)
    arrivals = bundle.unpack(archive, store, lambda holder: print(f"waiting: {holder}", file=sys.stderr))
    if as_json:
        print_json(
            {
                "root": str(store.root),
                "entries": [
                    {"key": a.entry.key, "shelf": a.entry.shelf, "name": a.entry.title, "new": a.new}
                    for a in arrivals
                ],
            }
        )
        return 0
    for line in columns(
        [("imported" if a.new else "present", a.entry.shelf, a.entry.title) for a in arrivals]
    ):
        print(fitted(line))
    imported = sum(arrival.new for arrival in arrivals)
    print(
        f"{count_text(len(arrivals), 'library')}: {imported} imported, "
        f"{len(arrivals) - imported} present already, in {store.root}"
    )
    if elsewhere := sum(not arrival.entry.shelf.endswith(platform_tag()) for arrival in arrivals):
        print(f"{elsewhere} of them not for this machine ({platform_tag()}), where nothing will load them")
    return 0


def _store(into: Path | None) -> Store:
    if into is None:
        require_lasting_cache()
        return roots.writable_store()
    into.mkdir(parents=True, exist_ok=True)
    return Store(into.absolute(), writable=True, chosen=True)
