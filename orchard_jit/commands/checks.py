"""What `orchard-jit doctor` asks of this machine. Every check only looks; nothing is changed."""

from __future__ import annotations

import difflib
import os
import platform
import pwd
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from orchard_jit import backends, binding
from orchard_jit.backends.metal import FAMILIES
from orchard_jit.blocks import tuned_path, tuned_table
from orchard_jit.blocks.table import Table
from orchard_jit.commands.console import bytes_text, count_text
from orchard_jit.commands.machine import compiler_fault, mps_fault, ninja_version
from orchard_jit.errors import BlocksError, ToolchainError
from orchard_jit.jit import build, library, roots
from orchard_jit.jit.recipe import for_binding, for_variant, platform_tag
from orchard_jit.jit.store import Entry
from orchard_jit.selection import select

OLDEST_TORCH, NEWEST_TORCH = (2, 13), (2, 13)
"""What the package is tested with, as in pyproject.toml."""

VARIABLES = (
    "ORCHARD_DEBUG_FLASHATN",
    "ORCHARD_DEBUG_FLASH_ATN",
    "ORCHARD_DEBUG_FLASH_ATN_LOG",
    "ORCHARD_GPU_FAMILY",
    "ORCHARD_JIT_BLOCKS",
    "ORCHARD_JIT_CACHE_DIR",
    "ORCHARD_JIT_CXXFLAGS",
    "ORCHARD_JIT_OFFLINE",
    "ORCHARD_JIT_PREBUILT_DIRS",
    "ORCHARD_JIT_QUIET",
    "ORCHARD_JIT_TUNED",
    "ORCHARD_STORAGE",
    "ORCHARD_TENSOR_PROFILE",
    "ORCHARD_TENSOR_PROFILE_LOG",
)
"""Every environment variable that the package reads, beside those of its tools."""

ACCEPTED = {"ORCHARD_GPU_FAMILY": FAMILIES, "ORCHARD_STORAGE": ("direct", "clone")}
"""Values of the variables that take only some; empty is as good as not set."""

_TOOL_VARIABLES = ("CXX", "MACOSX_DEPLOYMENT_TARGET")
_LEAST_SPACE = 200_000_000


@dataclass(frozen=True)
class Answer:
    """What a check found.

    Attributes:
        state: "ok"; "warning", it works but not as it could; "problem", it does not work.
        found: What was found.
        fix: What to do about it.

    """

    state: str
    found: str
    fix: str | None = None


def python() -> Answer:
    """The interpreter."""
    return Answer("ok", f"{sys.version.split()[0]}, {sys.executable}")


def pytorch() -> Answer:
    """The release of PyTorch."""
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if OLDEST_TORCH <= release <= NEWEST_TORCH:
        return Answer("ok", torch.__version__)
    tested = " to ".join(dict.fromkeys(".".join(map(str, end)) for end in (OLDEST_TORCH, NEWEST_TORCH)))
    return Answer(
        "warning", f"{torch.__version__}, tested: {tested}", "install a tested release, or run the tests"
    )


def processor() -> Answer:
    """The instruction set that kernels are compiled for."""
    try:
        return Answer(
            "ok", f"kernels for {backends.get('cpu').arch()}, {count_text(torch.get_num_threads(), 'thread')}"
        )
    except NotImplementedError as error:
        return Answer("problem", str(error), "use an x86-64 or a 64-bit ARM machine")


def compiler() -> Answer:
    """The C++ compiler, with the flags that a kernel needs."""
    command = shlex.split(build.compiler())[0]
    path = shutil.which(command)
    if path is None:
        return Answer(_state_without_tools(), f"{command!r} is not on PATH", _toolchain_text())
    variant = select(backend="cpu", kernel="forward", dtype="float32", head_dim=64, head_dim_v=64)
    fault = compiler_fault(for_variant(variant).compile_flags)
    found = f"{path}: {build.toolchain()['compiler']}"
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


def cache() -> Answer:
    """The folder that compiled kernels go to."""
    root = roots.cache_root()
    entries = [entry for store in roots.search_stores() if store.root == root for entry in store.entries()]
    folder = next(path for path in (root, *root.parents) if path.exists())
    status, free = folder.stat(), shutil.disk_usage(folder).free
    exists = f"{count_text(len(entries), 'library')}" if folder == root else "made when first needed"
    place = f"{root}: {exists}, {bytes_text(free)} free"
    another = "set ORCHARD_JIT_CACHE_DIR to another folder"
    if not folder.is_dir():
        return Answer("problem", f"{place}, {folder} is not a folder", another)
    if not os.access(folder, os.W_OK | os.X_OK):
        fix = f"{another}; until then kernels compiled by a process are lost when it ends"
        return Answer("warning", f"{place}, not writable", fix)
    if os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0):  # Python has the flag on Linux only
        return Answer("problem", f"{place}, mounted noexec: no library can be loaded from it", another)
    damaged = [fault for entry in entries if (fault := entry.damage())]
    if damaged:
        return Answer(
            "warning",
            f"{place}, damaged: {'; '.join(damaged)}",
            "nothing: they are compiled again when needed",
        )
    if free < _LEAST_SPACE:
        return Answer("warning", f"{place}, which is little", f"free some, or {another}")
    return Answer("ok", f"{place}, owner {_owner(status.st_uid)}, mode {stat.S_IMODE(status.st_mode):o}")


def blocks() -> Answer:
    """Files of block sizes beside the shipped ones."""
    path, own = tuned_path(), os.environ.get("ORCHARD_JIT_BLOCKS")
    try:
        tuned = len(tuned_table().entries)
        if own:
            Table.read(Path(own))
    except BlocksError as error:
        return Answer("problem", str(error), "correct it, or remove it: `orchard-jit tune` writes another")
    found = f"{count_text(tuned, 'tuned kernel')} in {path}" if tuned else "shipped"
    return Answer("ok", f"{found}, and those of {own}" if own else found)


def prebuilt() -> Answer:
    """Folders of kernels that were compiled elsewhere."""
    named = [Path(name) for name in os.environ.get("ORCHARD_JIT_PREBUILT_DIRS", "").split(os.pathsep) if name]
    missing = [str(path) for path in named if not path.is_dir()]
    if missing:
        return Answer("warning", f"no folder: {', '.join(missing)}", "correct ORCHARD_JIT_PREBUILT_DIRS")
    stores = [
        store for store in roots.search_stores() if store.root != roots.cache_root() and not store.writable
    ]
    if not stores:
        return Answer("ok", "none")
    entries = [entry for store in stores for entry in store.entries()]
    place = f"{', '.join(str(store.root) for store in stores)}: {count_text(len(entries), 'library')}"
    damaged = [fault for entry in entries if (fault := entry.damage())]
    if damaged:
        return Answer("warning", f"{place}, damaged: {'; '.join(damaged)}", "copy them again")
    if not any(entry.shelf in (platform_tag(), for_binding().shelf) for entry in entries):
        fix = f"prebuild for {platform_tag()} with torch {torch.__version__}"
        return Answer("warning", f"{place}, none for this platform and torch", fix)
    return Answer("ok", place)


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
    if _toolchain_text() is None:
        return Answer("ok", found)
    compiled = count_text(_stored_metal_kernels(family), "kernel")
    return Answer(
        "warning",
        f"{found}: {compiled}, and no compiler for more",
        f"xcode-select --install, or elsewhere: orchard-jit prebuild --backend metal --arch {family}",
    )


def operators() -> Answer:
    """Whether the compiled operators can be loaded."""
    prebuild = "orchard-jit prebuild --operators"
    if next(_stored_operators(), None) is None:
        if library.offline():
            return Answer(
                "problem",
                "not compiled, and ORCHARD_JIT_OFFLINE forbids it",
                f"run `{prebuild}` without it, and where there is a compiler",
            )
        if _toolchain_text() is not None:
            return Answer(
                "problem",
                "not compiled, and they can't be on this machine",
                f"run `{prebuild}` elsewhere, and name the cache here in ORCHARD_JIT_PREBUILT_DIRS",
            )
        return Answer("ok", f"not compiled yet; the first call does it, or now: {prebuild}")
    try:
        binding.load()
    except (RuntimeError, OSError) as error:
        return Answer("problem", f"can't be loaded: {error}", f"orchard-jit clear --yes, then {prebuild}")
    return Answer("ok", "loaded; `orchard-jit smoke` tries the kernels")


def _stored_operators() -> Iterator[Entry]:
    key = for_binding().key
    return (entry for store in roots.search_stores() for entry in store.entries() if entry.key == key)


def _stored_metal_kernels(family: str) -> int:
    variants = [
        entry.manifest["spec"].get("variant", {})
        for store in roots.search_stores()
        for entry in store.entries()
    ]
    return sum(variant.get("backend") == "metal" and variant.get("arch") == family for variant in variants)


def _state_without_tools() -> str:
    """Where the operators are compiled already, a missing compiler may well be meant."""
    return "problem" if next(_stored_operators(), None) is None else "warning"


def _toolchain_text() -> str | None:
    try:
        build.check_toolchain()
    except ToolchainError as error:
        return str(error)
    return None


def _owner(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user id {user}"
