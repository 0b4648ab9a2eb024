"""`orchard-jit wheel`: what is compiled, as a package to install."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import orchard_jit
from orchard_jit.commands import entries, options
from orchard_jit.commands.console import UsageError, bytes_text, count_text, print_json
from orchard_jit.jit import wheel as wheels

DESCRIPTION = (
    "Write a wheel `orchard_jit_cache` of libraries that are compiled. Where it is installed, orchard_jit "
    "finds them by itself, before it looks into the cache."
)
EXAMPLE = "orchard-jit wheel --out dist && pip install dist/orchard_jit_cache-*.whl"

_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?")


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    entries.add_options(verb)
    verb.add_argument(
        "--out",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where to write it, made if need be (default: here)",
    )
    verb.add_argument(
        "--version",
        default=orchard_jit.__version__,
        metavar="V",
        help="of the wheel, as 1.2 or 1.2+gpu (default: that of orchard_jit, %(default)s)",
    )
    options.add_json(verb)


def run(
    *, names: Sequence[str], only: Path | None, shelf: str, out: Path, version: str, as_json: bool
) -> int:
    """Write the wheel."""
    if not _VERSION.fullmatch(version):
        raise UsageError(f"--version must be as in 1.2, 1.2.post1 or 1.2+local, got {version!r}")
    chosen = entries.chosen(names, shelf, only)
    out.mkdir(parents=True, exist_ok=True)
    written = wheels.write(chosen, out, version)
    size = written.stat().st_size
    if as_json:
        listed = [{"key": entry.key, "shelf": entry.shelf, "name": entry.title} for entry in chosen]
        print_json({"wheel": str(written), "bytes": size, "entries": listed})
        return 0
    entries.print_all(chosen)
    print(f"{count_text(len(chosen), 'library')} in {written}, {bytes_text(size)}")
    return 0
