"""Block sizes: the shipped tables, and a user's own.

`ORCHARD_JIT_BLOCKS` may name a JSON file of block sizes by variant name, which replace those of the tables:

    {"metal-apple9-forward-f16-d64-causal": {"rows": 16, "columns": 64}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchard_jit.variant import Variant

# Each Metal kernel's "rows/columns/simdgroups/split", by the larger head dim, where operands have 16 bits and
# where they have 32. A lane then holds about 90 registers of data at most. Registers, spills and memory
# traffic were counted in a translation to PTX; nothing here has been timed on Apple hardware.
_METAL = """
up to   forward              dq                   dkv
        16 bits   32 bits    16 bits   32 bits    16 bits   32 bits
   32   16/32/4/1 16/32/4/1  16/32/4/1 16/16/4/1  16/16/4/1  8/32/4/1
   64   16/32/4/1 16/32/4/1  16/16/4/1  8/32/4/1   8/16/4/1  8/32/4/1
   80   16/16/4/1  8/32/4/1   8/32/4/1  8/32/4/1    8/8/4/1  8/16/4/1
   96   16/16/4/1  8/32/4/1   8/32/4/1  8/16/4/1    8/8/4/1  8/32/4/2
  128   16/16/4/2 16/16/4/2  16/16/4/2  8/32/4/2   8/32/4/2  8/32/4/2
  256   16/16/4/4 16/16/4/4  16/16/4/4  8/32/4/4   8/32/4/4  8/32/4/4
  512   16/16/8/8 16/16/8/8  16/16/8/8  8/32/8/8   8/32/8/8  8/32/8/8
"""
_METAL_ROWS = [line.split() for line in _METAL.splitlines()[3:]]
_METAL_NAMES = ("rows", "columns", "simdgroups", "split")


def choose(variant: Variant) -> dict[str, int]:
    """The block sizes for a variant that has none yet.

    Raises:
        ValueError: The user's file can't be read as what it should be.

    """
    table = _metal(variant) if variant.backend == "metal" else _cpu(variant)
    return {**table, **_own(os.environ.get("ORCHARD_JIT_BLOCKS", "")).get(variant.name, {})}


def _cpu(variant: Variant) -> dict[str, int]:
    """Queries of a task (q) and keys that they meet at once (k): both stay in the first two caches."""
    wide = max(variant.head_dim, variant.head_dim_v) > 128
    return {"q": (128 if wide else 256) if variant.kernel == "forward" else (64 if wide else 128), "k": 96}


def _metal(variant: Variant) -> dict[str, int]:
    """The families differ in bfloat16 alone: apple7 and apple8 multiply it as float32."""
    wide = max(variant.head_dim, variant.head_dim_v)
    row = next(row for row in _METAL_ROWS if wide <= int(row[0]))
    as_float32 = variant.dtype == "float32" or (
        variant.dtype == "bfloat16" and variant.arch in ("apple7", "apple8")
    )
    kernels = {"": 1} if variant.kernel == "forward" else {"dq_": 3, "dkv_": 5}
    return {
        prefix + name: int(size)
        for prefix, column in kernels.items()
        for name, size in zip(_METAL_NAMES, row[column + as_float32].split("/"), strict=True)
    }


@lru_cache(maxsize=4)
def _own(path: str) -> Mapping[str, Mapping[str, int]]:
    if not path:
        return {}
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        return {
            str(name): {str(block): int(size) for block, size in sizes.items()}
            for name, sizes in content.items()
        }
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"ORCHARD_JIT_BLOCKS={path} must be a JSON object of block sizes by variant name: {error}"
        ) from None
