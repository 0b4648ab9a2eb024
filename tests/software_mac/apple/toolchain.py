"""The Objective-C++ compiler (clang, from the ``ziglang`` wheel) and the runtime that it compiles against."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

from software_mac.apple.builder import Unit, build_library, cache_root

FOLDER = Path(__file__).parent
PACKAGE_ROOT = FOLDER.parents[1]
INCLUDE = FOLDER / "include"
METAL_INCLUDE = FOLDER.parent / "metal" / "include"

OBJECTIVE_C = [
    f"-I{INCLUDE}",
    "-fobjc-runtime=gnustep-1.5",
    "-fconstant-string-class=NSConstantString",
    "-fno-objc-exceptions",
    "-fobjc-call-cxx-cdtors",
    "-fblocks",
    "-Werror=objc-method-access",
    "-Wno-unused-command-line-argument",
    "-Wno-objc-property-assign-on-object-type",
]


@cache
def clang() -> list[str]:
    """clang++ for this machine: its own headers come with the wheel, the C++ library is the host's,
    so what it compiles links with what g++ compiles."""
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        raise RuntimeError(
            "the software Mac compiles Objective-C++ with the clang of ziglang: pip install ziglang"
        )
    wheel = Path(found.origin).parent
    target = f"--target={platform.machine()}-linux-gnu"
    return [
        str(wheel / "zig"),
        "clang",
        "--driver-mode=g++",
        target,
        "-isystem",
        str(wheel / "lib" / "include"),
    ]


def objective_cxx() -> list[str]:
    """The command that compiles one of our own ``.mm`` files."""
    own = ["-std=c++20", "-O1", "-g1", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter"]
    quiet = ["-Wno-deprecated-objc-isa-usage", "-Wno-incomplete-implementation"]
    return [
        *clang(),
        *OBJECTIVE_C,
        *own,
        *quiet,
        f"-I{METAL_INCLUDE}",
        f'-DSOFTWARE_MAC_ROOT="{PACKAGE_ROOT}"',
    ]


@cache
def build_runtime() -> Path:
    """``libsoftware_mac.so``: the Objective-C runtime, Foundation and the Metal device."""
    os.environ["SOFTWARE_MAC_PYTHON"] = sys.executable
    folders = [FOLDER / name for name in ("runtime", "foundation", "device")]
    sources = sorted(
        file for folder in folders for file in folder.iterdir() if file.suffix in (".cpp", ".mm")
    )
    headers = [file for folder in (*folders, INCLUDE) for file in folder.rglob("*.h")]
    units = [Unit(source, objective_cxx()) for source in sources]
    return build_library(
        "libsoftware_mac.so", units, [*headers, METAL_INCLUDE / "software_metal.h"], ["-ldl", "-pthread"]
    )


def compile_for_mac(source: Path, output: Path) -> None:
    """Compiles an Objective-C++ file for a real Mac (arm64, Mach-O, Apple's runtime and libc++). Apple's own
    headers of the language, of libdispatch and of the C library come with the wheel and go before ours."""
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache_root() / "zig")}
    language = ["-std=c++20", "-fblocks", "-fno-sanitize=undefined", "-Werror=objc-method-access"]
    command = [clang()[0], "c++", "-target", "aarch64-macos", *language, "-idirafter", str(INCLUDE)]
    command += ["-c", str(source), "-o", str(output)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)


def compiler() -> Path:
    """The compiler for ``CXX``: takes ``.mm`` files, ``-framework``, and everything that g++ takes."""
    build_runtime()
    return FOLDER / "software-mac-clang++"
