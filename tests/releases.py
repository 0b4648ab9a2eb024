"""The core of the suite against other releases of PyTorch.

    python tests/releases.py 2.5.1 2.8.0        # or without arguments, one of each minor release

Each gets a virtual environment of its own, 5 to 7 GB with PyPI's builds for Linux, and removed afterwards.
The software Mac needs the release that it was written against, so this is about the CPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ("2.5.1", "2.6.0", "2.7.1", "2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.12.1", "2.13.0")
BESIDE_TORCH = (
    "ninja",
    "jinja2",
    "platformdirs",
    "setuptools",
    "numpy",
    "pytest",
    "pytest-xdist",
    "hypothesis",
)
CORE = {
    "conformance": ("tests/test_conformance.py", "-k", "grouped or own_head_dim or strides or empty or odd"),
    "features": ("tests/test_features.py",),
    "gradcheck": ("tests/test_gradcheck.py",),
    "autograd": ("tests/test_autograd.py",),
    "autocast": ("tests/test_autocast.py",),
    "torch.func": ("tests/test_transforms.py",),
    "interfaces": ("tests/test_interfaces.py",),
    "routing": ("tests/integrations/test_routing.py",),
    "first call": ("tests/jit/test_first_call.py",),
}


def python_with(release: str, folder: Path) -> Path:
    """The interpreter of a new environment with that release."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    subprocess.run([*pip, f"torch=={release}", *BESIDE_TORCH], check=True)
    return python


def counts(python: Path, arguments: tuple[str, ...], cache: Path) -> str:
    """Pytest's last line, as "12 passed", and what failed."""
    run = subprocess.run(
        [python, "-m", "pytest", "-n", "2", "-p", "no:cacheprovider", "--tb=line", "-rfE", *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "ORCHARD_TEST_DEVICES": "cpu",
            "ORCHARD_JIT_CACHE_DIR": str(cache),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = run.stdout.splitlines()
    failed = [line.partition(" - ")[0] for line in lines if re.match(r"(FAILED|ERROR) ", line)]
    summary = next(
        (line for line in reversed(lines) if re.search(r"\d+ \w+ in ", line)), "pytest ended badly"
    )
    return "; ".join((summary.strip("= "), *failed))


def main() -> None:
    for release in sys.argv[1:] or RELEASES:
        with tempfile.TemporaryDirectory(prefix=f"torch-{release}-") as folder:
            cache = Path(folder, "cache")
            cache.mkdir(mode=0o700)
            python = python_with(release, Path(folder, "venv"))
            for name, arguments in CORE.items():
                print(f"{release:8} {name:12} {counts(python, arguments, cache)}", flush=True)


if __name__ == "__main__":
    main()
