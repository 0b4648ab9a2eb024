"""What `orchard-jit doctor` asks of this machine. Every check only looks; nothing is changed."""

from __future__ import annotations

import difflib
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from orchard_jit import backends
from orchard_jit.backends.metal import FAMILIES
from orchard_jit.commands import memory, probe
from orchard_jit.commands.console import bytes_text, count_text
from orchard_jit.commands.machine import compiler_fault, mps_fault, ninja_version
from orchard_jit.errors import ToolchainError
from orchard_jit.jit import build, roots
from orchard_jit.jit.entry import Entry
from orchard_jit.jit.recipe import for_binding, for_variant
from orchard_jit.selection import select

OLDEST_TORCH, NEWEST_TORCH = (2, 5), (2, 13)
"""What the package is tested with, as in pyproject.toml."""

VARIABLES = (
    "ORCHARD_DEBUG_FLASHATN",
    "ORCHARD_DEBUG_FLASH_ATN",
    "ORCHARD_DEBUG_FLASH_ATN_LOG",
    "ORCHARD_GPU_FAMILY",
    "ORCHARD_JIT_BLOCKS",
    "ORCHARD_JIT_CACHE_DIR",
    "ORCHARD_JIT_CACHE_MAX_SIZE",
    "ORCHARD_JIT_CXXFLAGS",
    "ORCHARD_JIT_OFFLINE",
    "ORCHARD_JIT_PREBUILT_DIRS",
    "ORCHARD_JIT_QUIET",
    "ORCHARD_JIT_RECORD",
    "ORCHARD_JIT_TUNED",
    "ORCHARD_STORAGE",
    "ORCHARD_TENSOR_PROFILE",
    "ORCHARD_TENSOR_PROFILE_LOG",
)
"""Every environment variable that the package reads, beside those of its tools."""

ACCEPTED = {"ORCHARD_GPU_FAMILY": FAMILIES, "ORCHARD_STORAGE": ("direct", "clone")}
"""Values of the variables that take only some; empty is as good as not set."""

_TOOL_VARIABLES = ("CXX", "MACOSX_DEPLOYMENT_TARGET")
_PACKAGES = ("torch", "ninja", "jinja2", "platformdirs")


@dataclass(frozen=True)
class Answer:
    """What a check found.

    Attributes:
        state: "ok"; "warning", it works but not as it could; "problem", it does not work; "not run".
        found: What was found.
        fix: What to do about it.

    """

    state: str
    found: str
    fix: str | None = None


def python() -> Answer:
    """The interpreter."""
    return Answer("ok", f"{sys.version.split()[0]}, {sys.executable}")


def packages() -> Answer:
    """What the package imports: is it there, and is it the real one?"""
    missing = [name for name in _PACKAGES if util.find_spec(name) is None]
    if missing:
        return Answer("problem", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    here = [name for name in (*_PACKAGES, "orchard_jit") if _is_shadowed(name)]
    if here:
        fix = "rename it, or start Python in another folder"
        return Answer("warning", f"imported from the current folder: {', '.join(here)}", fix)
    return Answer("ok", ", ".join(_PACKAGES))


def pytorch() -> Answer:
    """The release of PyTorch, and whether it can be imported at all."""
    reply = probe.torch()
    if reply.fault is not None:
        fix = "pip install --force-reinstall torch, with the release that fits this Python and this system"
        return Answer("problem", f"can't be imported: {reply.fault}", fix)
    version = reply.facts["version"]
    release = tuple(int(part) for part in version.split(".")[:2])
    if OLDEST_TORCH <= release <= NEWEST_TORCH:
        return Answer("ok", version)
    tested = " to ".join(dict.fromkeys(".".join(map(str, end)) for end in (OLDEST_TORCH, NEWEST_TORCH)))
    return Answer("warning", f"{version}, tested: {tested}", "install a tested release, or run the tests")


def processor() -> Answer:
    """The instruction set that kernels are compiled for."""
    try:
        arch = backends.get("cpu").arch()
    except NotImplementedError as error:
        return Answer("problem", str(error), "use an x86-64 or a 64-bit ARM machine")
    return Answer("ok", f"kernels for {arch}, {count_text(probe.torch().facts['threads'], 'thread')}")


def compiler() -> Answer:
    """The C++ compiler, with the flags that a kernel needs."""
    command = shlex.split(build.compiler())[0]
    path = shutil.which(command)
    if path is None:
        return Answer(_state_without_tools(), f"{command!r} is not on PATH", toolchain_text())
    variant = select(backend="cpu", kernel="forward", dtype="float32", head_dim=64, head_dim_v=64)
    fault = compiler_fault(for_variant(variant).compile_flags)
    found = f"{path}: {build.compiler_version()}"
    if fault is not None:
        fix = "install a compiler that takes these flags, or name one in CXX; look at ORCHARD_JIT_CXXFLAGS"
        return Answer("problem", f"{found}, can't compile: {fault}", fix)
    return Answer("ok", found)


def ninja() -> Answer:
    """The build tool that `torch.utils.cpp_extension` runs."""
    version = ninja_version()
    if version is None:
        return Answer(_state_without_tools(), "not found", "pip install ninja")
    return Answer("ok", version)


def free_memory() -> Answer:
    """What compilers could use; the system kills one that finds none, without a word."""
    free = memory.available_bytes()
    found = f"{bytes_text(free)} free"
    if free < memory.BUILD_BYTES["binding"]:
        return Answer("warning", found, "end other programs before the first call, or prebuild elsewhere")
    return Answer("ok", found)


def variables() -> Answer:
    """Environment variables, misspelt ones, and those with values that nothing accepts."""
    known = (*VARIABLES, *_TOOL_VARIABLES)
    found = ", ".join(f"{name}={os.environ[name]}" for name in known if name in os.environ) or "none set"
    wrong = [name for name, values in ACCEPTED.items() if os.environ.get(name, "") not in ("", *values)]
    if wrong:
        fix = "; ".join(f"set {name} to {' or '.join(ACCEPTED[name])}, or unset it" for name in wrong)
        return Answer("problem", found, fix)
    unknown = sorted(name for name in os.environ if name.startswith("ORCHARD_JIT_") and name not in known)
    if not unknown:
        return Answer("ok", found)
    meant = [difflib.get_close_matches(name, known, 1, 0.0)[0] for name in unknown]
    fix = "; ".join(f"{name}: did you mean {guess}?" for name, guess in zip(unknown, meant, strict=True))
    return Answer("warning", f"{found}; nothing reads {', '.join(unknown)}", fix)


def mps() -> Answer:
    """The GPU."""
    fault = mps_fault()
    if fault is not None and platform.system() != "Darwin":
        return Answer("ok", f"none here: {fault}")
    if fault is not None:
        return Answer("warning", "not available", fault)
    family = backends.get("metal").arch()
    found = f'available: device="mps", kernels for {family}'
    if toolchain_text() is None:
        return Answer("ok", found)
    compiled = count_text(_stored_metal_kernels(family), "kernel")
    return Answer(
        "warning",
        f"{found}: {compiled}, and no compiler for more",
        f"xcode-select --install, or elsewhere: orchard-jit prebuild --backend metal --arch {family}",
    )


def _is_shadowed(name: str) -> bool:
    """Whether a file of the current folder is taken for a package, as a script called torch.py is."""
    spec = util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin) == Path.cwd() / f"{name}.py"


def stored_operators() -> Iterator[Entry]:
    """Those that this PyTorch can use."""
    key = for_binding().key
    return (entry for store in roots.search_stores() for entry in store.entries() if entry.key == key)


def toolchain_text() -> str | None:
    """Why nothing can be compiled, and the fix, or None if it can."""
    try:
        build.check_toolchain()
    except ToolchainError as error:
        return str(error)
    return None


def _stored_metal_kernels(family: str) -> int:
    variants = [
        entry.manifest["spec"].get("variant", {})
        for store in roots.search_stores()
        for entry in store.entries()
    ]
    return sum(variant.get("backend") == "metal" and variant.get("arch") == family for variant in variants)


def _state_without_tools() -> str:
    """Where the operators are compiled already, a missing compiler may well be meant."""
    return "problem" if next(stored_operators(), None) is None else "warning"
