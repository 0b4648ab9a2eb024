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

HIT_RUNS = 21
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

variants = [
    select(backend="cpu", kernel=kernel, dtype="float32", head_dim=64, head_dim_v=64, features=["causal"])
    for kernel in ("forward", "backward")
]
makers = [recipe.for_binding, *(lambda variant=variant: recipe.for_variant(variant) for variant in variants)]
for make in makers:  # the operators come first, as in a call, and pay for what is used the first time
    started = time.perf_counter()
    wanted = make()
    wanted.key
    keyed = time.perf_counter()
    library.load(wanted)
    print(keyed - started, time.perf_counter() - keyed)
"""
LIBRARIES = ("operators", "forward", "backward")


def hits(cache: str) -> list[tuple[float, float]]:
    """What it takes to make each library's key, and to find, verify, hold and load it, in a fresh process."""
    environment = {**os.environ, "ORCHARD_JIT_CACHE_DIR": cache, "ORCHARD_JIT_OFFLINE": "1"}
    words = [sys.executable, "-c", HITS]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return [(float(key), float(load)) for key, load in map(str.split, run.stdout.splitlines())]


def print_hits(cache: str) -> None:
    """Medians, and the fastest, which a busy machine disturbs less."""
    print(f"one library in a fresh process, ms (of {HIT_RUNS})       key   load    all   fastest")
    for name, runs in zip(LIBRARIES, zip(*(hits(cache) for _ in range(HIT_RUNS)), strict=True), strict=True):
        key, load = (median(column) * 1e3 for column in zip(*runs, strict=True))
        both = [1e3 * sum(run) for run in runs]
        print(f"    {name:42} {key:6.2f} {load:6.2f} {median(both):6.2f} {min(both):9.2f}")


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
        print_hits(cache)


if __name__ == "__main__":
    main()
