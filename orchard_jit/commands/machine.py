"""What this machine has to have: a compiler that works, ninja, and for `--device mps` a GPU."""

from __future__ import annotations

import datetime
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchard_jit import backends
from orchard_jit.errors import OrchardError
from orchard_jit.jit import build

_TRIAL = '#include <cstdint>\nextern "C" std::int32_t trial() { return 0; }\n'
_TRIAL_SECONDS = 60


def compiler_fault(flags: Sequence[str] = ()) -> str | None:
    """Why the compiler can't make a shared library of a short file with these flags, or None if it can."""
    with tempfile.TemporaryDirectory(prefix="orchard_jit-") as folder:
        source = Path(folder) / "trial.cpp"
        source.write_text(_TRIAL, encoding="utf-8")
        words = [
            *shlex.split(build.compiler()),
            *flags,
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            f"{folder}/trial.so",
        ]
        try:
            run = subprocess.run(words, capture_output=True, text=True, timeout=_TRIAL_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        if run.returncode == 0:
            return None
        return next(
            (line for line in run.stderr.splitlines() if "error" in line), f"exit code {run.returncode}"
        )


def facts() -> dict[str, Any]:
    """Processor, versions and date, to stand beside what was measured."""
    import torch

    import orchard_jit

    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": backends.get("cpu").device(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "orchard_jit": orchard_jit.__version__,
    }


def ninja_version() -> str | None:
    """Version of the ninja on PATH, else of pip's, or None if there is neither."""
    command = shutil.which("ninja")
    if command is None:
        try:
            import ninja
        except ImportError:
            return None
        command = str(Path(ninja.BIN_DIR) / "ninja")
    run = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return run.stdout.strip().partition(".git")[0] or None  # pip's says more than its number


def require_device(device: str) -> None:
    """Refuse a device that this machine has not.

    Raises:
        OrchardError: There are no kernels for it here, and why.

    """
    fault = mps_fault() if device == "mps" else None
    if fault is not None:
        raise OrchardError(f"--device mps: {fault}")


def mps_fault() -> str | None:
    """Why there are no kernels for `device="mps"` on this machine, or None if there are."""
    import torch

    available = torch.backends.mps.is_available()
    if not available and platform.system() != "Darwin":
        return f"MPS needs macOS on Apple Silicon; this is {platform.system()}"
    if not torch.backends.mps.is_built():
        return "this PyTorch was built without MPS; install its arm64 build into an arm64 Python"
    try:
        backends.get("metal").arch()
    except NotImplementedError as error:
        return str(error)
    return None if available else "PyTorch finds no GPU; a virtual machine may have none"
