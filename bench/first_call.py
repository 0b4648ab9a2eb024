"""What the first call costs: on an empty cache, for a further variant, and on a warm cache.

    python bench/first_call.py

Each line is a process of its own. "beyond torch" is the import of orchard_jit and the first forward and
backward; the import of torch before it is not counted.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from statistics import median

CALL = """
import time, torch
import sys
started = time.perf_counter()
import orchard_jit
imported = time.perf_counter()
q = torch.randn(1, 2, 100, {head_dim}, requires_grad=True)
orchard_jit.flash_attention(q, q, q, causal=True).sum().backward()
print(imported - started, time.perf_counter() - imported)
"""

HITS = """
import time, torch
from orchard_jit import binding
from orchard_jit.jit import library, recipe
from orchard_jit.selection import select
library.find(recipe.for_binding())  # what only the first hit imports is not a library's own time
for kernel in ("forward", "backward"):
    wanted = recipe.for_variant(select(
        backend="cpu", kernel=kernel, dtype="float32", head_dim=64, head_dim_v=64, features=["causal"]
    ))
    wanted.key
    started = time.perf_counter()
    library.load(wanted)
    print(time.perf_counter() - started)
started = time.perf_counter()
operators = recipe.for_binding()
operators.key
print(time.perf_counter() - started)
started = time.perf_counter()
library.load(operators)
print(time.perf_counter() - started)
"""
NAMES = ("forward", "backward", "the key of the operators", "operators, which register themselves")


def hits(cache: str) -> list[float]:
    """What it takes to find, verify, hold and load each library in a fresh process."""
    environment = {**os.environ, "ORCHARD_JIT_CACHE_DIR": cache, "ORCHARD_JIT_OFFLINE": "1"}
    words = [sys.executable, "-c", HITS]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return [float(line) for line in run.stdout.splitlines()]


def seconds(cache: str, head_dim: int, **environment: str) -> tuple[float, float]:
    """Import and first call of a fresh process."""
    run = subprocess.run(
        [sys.executable, "-c", CALL.format(head_dim=head_dim)],
        env={**os.environ, "ORCHARD_JIT_CACHE_DIR": cache, "ORCHARD_JIT_QUIET": "1", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    imported, called = map(float, run.stdout.split())
    return imported, called


def main() -> None:
    with tempfile.TemporaryDirectory() as cache:
        imported, called = seconds(cache, 64)
        print(f"empty cache: operators, forward and backward compiled   {imported + called:7.2f} s")
        imported, called = seconds(cache, 80)
        print(f"a further variant: forward and backward compiled        {imported + called:7.2f} s")
        # No compiler and no ninja can be started on this path, and compiling is forbidden.
        runs = [seconds(cache, 64, PATH="/nonexistent", ORCHARD_JIT_OFFLINE="1") for _ in range(11)]
        imported, called = (median(column) * 1e3 for column in zip(*runs, strict=True))
        print(f"warm cache, beyond torch (median of 11)                 {imported + called:7.1f} ms")
        print(f"    import orchard_jit {imported:.1f} ms, first forward+backward {called:.1f} ms")
        columns = zip(*(hits(cache) for _ in range(11)), strict=True)
        for name, column in zip(NAMES, columns, strict=True):
            print(f"    {name:53} {median(column) * 1e3:7.2f} ms")


if __name__ == "__main__":
    main()
