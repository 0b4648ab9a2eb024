"""`orchard-jit export`: what is compiled, as one archive for other machines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from orchard_jit.commands import entries, options
from orchard_jit.commands.console import bytes_text, count_text, print_json
from orchard_jit.jit import bundle, files

DESCRIPTION = (
    "Write libraries of the cache and of the prebuilt folders to an archive that `orchard-jit import` takes "
    "in. Each one is verified first; the same libraries make the same archive, byte for byte."
)
EXAMPLE = "orchard-jit export kernels.tar.gz --only kernels.toml"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("archive", type=Path, metavar="ARCHIVE", help="a new file *.tar.gz or *.tar.zst")
    entries.add_options(verb)
    options.add_json(verb)


def run(*, archive: Path, names: Sequence[str], only: Path | None, shelf: str, as_json: bool) -> int:
    """Pack the chosen entries."""
    chosen = entries.chosen(names, shelf, only)
    bundle.pack(chosen, archive)
    size, sha256 = archive.stat().st_size, files.sha256(archive)
    if as_json:
        listed = [{"key": entry.key, "shelf": entry.shelf, "name": entry.title} for entry in chosen]
        print_json({"archive": str(archive), "bytes": size, "sha256": sha256, "entries": listed})
        return 0
    entries.print_all(chosen)
    print(f"{count_text(len(chosen), 'library')} in {archive}, {bytes_text(size)}, SHA-256 {sha256}")
    return 0
