"""Questions about PyTorch, asked in a fresh process: a broken one may end the process that imports it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_SECONDS = 120

_TORCH = """
import json, torch
print(json.dumps({
    "version": torch.__version__,
    "file": torch.__file__,
    "threads": torch.get_num_threads(),
    "cxx11_abi": torch.compiled_with_cxx11_abi(),
    "capability": torch.backends.cpu.get_cpu_capability(),
    "mps": torch.backends.mps.is_available(),
}))
"""
_CALL = """
import json, os, tempfile
folder = tempfile.TemporaryDirectory()
log = os.environ["ORCHARD_DEBUG_FLASH_ATN_LOG"] = os.path.join(folder.name, "log")
os.environ["ORCHARD_DEBUG_FLASH_ATN"] = os.environ["ORCHARD_JIT_OFFLINE"] = "1"
import torch, orchard_jit
q = torch.randn(1, 1, 8, 64, requires_grad=True)
out = orchard_jit.flash_attention(q, q, q)
out.sum().backward()
expected = torch.nn.functional.scaled_dot_product_attention(q, q, q)
print(json.dumps({"kernels": len(open(log).readlines()), "error": (out - expected).abs().max().item()}))
"""

_TRACEBACK = "Traceback (most recent call last):\n"


@dataclass(frozen=True)
class Reply:
    """What a fresh process has said: a document, or else why there is none."""

    facts: dict[str, Any]
    fault: str | None = None


@lru_cache(maxsize=1)
def torch() -> Reply:
    """Version and abilities of the PyTorch that is installed."""
    return _ask(_TORCH)


def call() -> Reply:
    """Whether our kernels run in a small call; nothing is compiled for it."""
    return _ask(_CALL)


def _ask(code: str) -> Reply:
    try:
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        lines = [line for line in run.stdout.splitlines() if line]
        return Reply(json.loads(lines[-1])) if run.returncode == 0 else Reply({}, _reason(run))
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return Reply({}, str(error))


def _reason(run: subprocess.CompletedProcess[str]) -> str:
    """The first line of the error below the last traceback, or else how the process has ended."""
    lines = [line for line in run.stderr.rpartition(_TRACEBACK)[2].splitlines() if line.strip()]
    errors = [line for line in lines if not line.startswith(" ")] if _TRACEBACK in run.stderr else lines[-1:]
    said = errors[0] if errors else ""
    if run.returncode < 0:
        return f"killed by signal {-run.returncode}{f': {said}' if said else ''}"
    return said or f"exit code {run.returncode}"
