"""What a fresh process waits for its first forward and backward, with and without a bundle of kernels.

    python bench/cold_start.py

Each line is a process of its own. The time is that beyond `import torch`: importing orchard_jit, finding or
compiling the operators and two kernels, running them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

RUNS = 7
CALL = """
import time, torch
started = time.perf_counter()
import orchard_jit
q = torch.randn(1, 2, 100, 64, requires_grad=True)
orchard_jit.flash_attention(q, q, q, causal=True).sum().backward()
print(time.perf_counter() - started)
"""


def python(*words: str, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "ORCHARD_JIT_QUIET": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return run.stdout


def seconds(runs: int = 1, **environment: str) -> float:
    """The middle one of several processes."""
    return median(float(python("-c", CALL, **environment)) for _ in range(runs))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache, bundle, prebuilt, site = (
            str(Path(folder, name)) for name in ("cache", "k.tar.gz", "pre", "site")
        )
        nothing = {"PATH": "/nonexistent", "ORCHARD_JIT_CACHE_DIR": str(Path(folder, "none"))}
        here = {"ORCHARD_JIT_CACHE_DIR": cache}
        print(f"empty cache: compiles all           {seconds(**here):9.2f} s")

        size = json.loads(python("-m", "orchard_jit", "export", bundle, "--json", **here))["bytes"]
        python("-m", "orchard_jit", "import", bundle, "--into", prebuilt)
        python("-m", "orchard_jit", "wheel", "--out", folder, **here)
        (wheel,) = Path(folder).glob("*.whl")
        pip = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site, str(wheel))
        python(*pip)
        path = os.pathsep.join((os.environ.get("PYTHONPATH", ""), site)).strip(os.pathsep)

        archive = seconds(RUNS, ORCHARD_JIT_PREBUILT_DIRS=prebuilt, **nothing)
        installed = seconds(RUNS, PYTHONPATH=path, **nothing)
        warm = seconds(RUNS, **here)
        print(f"the bundle ({size / 1e3:.0f} kB), no compiler   {archive * 1e3:9.1f} ms (median of {RUNS})")
        print(f"the wheel, no compiler              {installed * 1e3:9.1f} ms")
        print(f"warm cache                          {warm * 1e3:9.1f} ms")


if __name__ == "__main__":
    main()
