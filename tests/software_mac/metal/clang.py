"""Clang and LLVM's linker, out of the PyPI wheel ``ziglang``."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

INCLUDE = Path(__file__).parent / "include"

# As a Metal compiler reads C++: no C library, literals are float, char is signed, and calls are convergent:
# as they may hold a barrier, the optimiser may not move them between branches. Useful warnings are on.
LANGUAGE = (
    "-x", "c++", "-std=c++17", "-nostdinc", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics",
    "-fsigned-char",
    "-Xclang", "-cl-single-precision-constant", "-Xclang", "-fconvergent-functions",
    "-D__METAL__", "-D__METAL_VERSION__=310", "-D__HAVE_BFLOAT__",
    "-fno-caret-diagnostics", "-fno-color-diagnostics", "-Wno-everything",
    "-Werror=return-type", "-Wuninitialized", "-Wsometimes-uninitialized", "-Warray-bounds",
    "-Wshift-count-overflow",
)  # fmt: skip

_MACHINES = {"x86_64": ("x86_64-linux-gnu", "x86-64-v3"), "aarch64": ("aarch64-linux-gnu", "armv8.2-a+fp16")}


class ToolError(Exception):
    """A tool failed for a reason that is not the source's."""


@cache
def executable() -> str:
    try:
        import ziglang  # type: ignore[import-not-found]
    except ImportError as error:
        raise ToolError(
            "software_mac.metal needs clang out of the wheel ziglang: pip install ziglang"
        ) from error
    return str(Path(ziglang.__file__).parent / "zig")


@cache
def version() -> str:
    return run("clang", ["--version"]).stdout.splitlines()[0]


def host_target() -> list[str]:
    machine = platform.machine()
    if machine not in _MACHINES:
        raise ToolError(f"the engine is written for {' and '.join(_MACHINES)}; this machine is {machine}")
    triple, processor = _MACHINES[machine]
    flags = ["-target", triple, f"-march={processor}"]
    if machine == "x86_64":
        flags += ["-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none"]
    return flags


def run(tool: str, arguments: Sequence[str], check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs clang, c++ or ld.lld. With check, a failure is a ToolError."""
    done = subprocess.run([executable(), tool, *arguments], capture_output=True, text=True, errors="replace")
    if check and done.returncode:
        raise ToolError(f"{tool} {' '.join(arguments)}\nfailed with status {done.returncode}:\n{done.stderr}")
    return done
