"""Block sizes: which ones a kernel is compiled in. Of these, the later ones count:

1. the shipped ones: `cpu.json` and `metal.json` beside this file;
2. the tuned ones of this device, which `orchard_jit.tune` has found: `tuned_path`;
3. those of a file of your own: `ORCHARD_JIT_BLOCKS`;
4. those that `orchard_jit.specialize` forces.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from orchard_jit.blocks import forced as forcing
from orchard_jit.blocks.table import Table
from orchard_jit.variant import Variant


def choose(variant: Variant, forced: str = "") -> dict[str, int]:
    """The block sizes for a variant that has none yet.

    Args:
        variant: What is compiled.
        forced: What `orchard_jit.specialize` forces, as it writes that down.

    Raises:
        BlocksError: A file can't be used.
        ValueError: What is forced is of no kernel of the variant's backend.

    """
    sizes: dict[str, int] = {}
    for _, chosen in _choices(variant):
        sizes.update(chosen)
    return forcing.applied(forced, variant, sizes)


def origin(variant: Variant) -> str:
    """Where a variant's block sizes come from, for people."""
    blocks = dict(variant.blocks)
    sizes: dict[str, int] = {}
    origins = []
    for name, chosen in _choices(variant):
        sizes.update(chosen)
        if chosen:
            origins.append(name)
    return origins[-1] if sizes == blocks else "specialize"


def shipped(variant: Variant) -> dict[str, int]:
    """The block sizes that a variant has on a machine where nobody has tuned anything."""
    return shipped_table(variant.backend).sizes(variant)


@lru_cache(maxsize=2)
def shipped_table(backend: str) -> Table:
    """All shipped block sizes of a backend."""
    return Table.read(Path(__file__).with_name(f"{backend}.json"))


def tuned_path() -> Path:
    """The file that tuning writes: `ORCHARD_JIT_TUNED`, else in the user's folder of settings."""
    if named := os.environ.get("ORCHARD_JIT_TUNED"):
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_config_dir("orchard_jit")) / "tuned.json"


def tuned_table() -> Table:
    """What tuning has found so far, on any device."""
    path = tuned_path()
    return Table.read(path) if path.exists() else Table()


def _choices(variant: Variant) -> Iterator[tuple[str, Mapping[str, int]]]:
    """(where from, sizes), the later ones in place of the earlier ones."""
    yield "shipped", shipped(variant)
    yield "tuned", tuned_table().sizes(variant)
    if named := os.environ.get("ORCHARD_JIT_BLOCKS"):
        yield "ORCHARD_JIT_BLOCKS", Table.read(Path(named)).sizes(variant)
