"""What a result was measured on."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path
from typing import Any

import torch

import orchard_jit


def describe() -> dict[str, Any]:
    """Processor, cores, versions and date, to stand beside every result."""
    return {
        "date": datetime.datetime.now(tz=datetime.timezone.utc).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "orchard_jit": orchard_jit.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
