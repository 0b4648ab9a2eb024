"""One ``.mm`` file as a library of this process: what a test needs when PyTorch is not part of it."""

from __future__ import annotations

import ctypes
from pathlib import Path

from software_mac.apple.builder import Unit, build_library
from software_mac.apple.device import library
from software_mac.apple.toolchain import INCLUDE, OBJECTIVE_C, build_runtime, clang


def load_plugin(source: Path) -> ctypes.CDLL:
    """Compiles ``source`` as a Mac would, unless that was done before, and loads it."""
    library()
    unit = Unit(source, [*clang(), *OBJECTIVE_C, "-std=c++20", "-O1", "-fPIC", "-Wall", "-Werror"])
    link = [str(build_runtime()), f"-Wl,-rpath,{build_runtime().parent}"]
    headers = [*INCLUDE.rglob("*.h"), *source.parent.glob("*.h")]
    return ctypes.CDLL(str(build_library(f"{source.stem}.so", [unit], headers, link)))
