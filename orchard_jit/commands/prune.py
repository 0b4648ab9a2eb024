"""`orchard-jit prune`: a cache within its limits."""

from __future__ import annotations

import argparse

from orchard_jit.commands import options, values
from orchard_jit.commands.removal import Removal
from orchard_jit.jit import eviction, roots

DESCRIPTION = (
    "Remove from the cache what exceeds the limits: versions that nothing asks for any more first, then what "
    "was used least recently. What dead and failed builds have left goes too. Prebuilt folders and libraries "
    "that running programs hold stay."
)
EXAMPLE = "orchard-jit prune --max-size 500MB --max-age 90 --stale --dry-run"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument(
        "--max-size",
        type=_size,
        metavar="SIZE",
        help="what the libraries may take up (default: ORCHARD_JIT_CACHE_MAX_SIZE, else 4 GB)",
    )
    verb.add_argument(
        "--max-age", type=values.positive, metavar="DAYS", help="how long a library may be unused"
    )
    verb.add_argument(
        "--stale",
        action="store_true",
        help="everything of other versions of this package and of other PyTorch releases",
    )
    verb.add_argument("--dry-run", action="store_true", help="say what would be removed")
    options.add_json(verb)


def run(*, max_size: int | None, max_age: int | None, stale: bool, dry_run: bool, as_json: bool) -> int:
    """Remove what exceeds the limits. 1 if something of it is in use and stays."""
    store = roots.cache_store()
    candidates = eviction.candidates(
        store,
        most_bytes=eviction.max_bytes() if max_size is None else max_size,
        most_seconds=None if max_age is None else max_age * 86400.0,
        stale=stale,
    )
    rests = [*store.leftovers(), *store.kept(), *(store.old_layouts() if stale else ())]
    removal = Removal(store, candidates, rests)
    return (removal.foreseen() if dry_run else removal.run()).report(as_json=as_json)


def _size(text: str) -> int:
    try:
        return eviction.bytes_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
