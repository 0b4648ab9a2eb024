"""What `orchard-jit doctor` asks of the cache and of what is in it. Every check only looks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orchard_jit.blocks import tuned_path, tuned_table
from orchard_jit.blocks.table import Table
from orchard_jit.commands import checks, probe
from orchard_jit.commands.checks import Answer
from orchard_jit.commands.console import bytes_text, count_text
from orchard_jit.errors import BlocksError
from orchard_jit.jit import eviction, library, lock, roots
from orchard_jit.jit.recipe import platform_tag
from orchard_jit.jit.store import Store

_LEAST_SPACE = 200_000_000
_NETWORK_MOUNTS = ("nfs", "nfs4", "cifs", "smb3", "lustre", "gpfs", "ceph", "fuse.sshfs", "9p", "beegfs")
_ANOTHER = "set ORCHARD_JIT_CACHE_DIR to another folder"


def cache() -> Answer:
    """The folder that compiled kernels go to."""
    root = roots.cache_root()
    store = roots.cache_store()
    folder = next(path for path in (root, *root.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    exists = (
        f"{count_text(len(store.directories()), 'library')}" if folder == root else "made when first needed"
    )
    place = f"{root}: {exists}, {bytes_text(free)} free"
    if not folder.is_dir():
        return Answer("problem", f"{place}, {folder} is not a folder", _ANOTHER)
    if not os.access(folder, os.W_OK | os.X_OK):
        fix = f"{_ANOTHER}; until then kernels compiled by a process are lost when it ends"
        return Answer("warning", f"{place}, not writable", fix)
    if roots.is_noexec(folder):
        return Answer("problem", f"{place}, mounted noexec: no library can be loaded from it", _ANOTHER)
    if damaged := list(store.damaged()):
        return Answer(
            "warning", f"{place}, damaged: {_faults(damaged)}", "orchard-jit verify, which sets them aside"
        )
    if free < _LEAST_SPACE:
        return Answer("warning", f"{place}, which is little", f"free some, orchard-jit prune, or {_ANOTHER}")
    stale = sum(eviction.why_stale(entry) is not None for entry in store.entries())
    found = f"{place}{f', {stale} of other versions (orchard-jit prune --stale)' if stale else ''}"
    if (mount := _mount_type(folder)) in _NETWORK_MOUNTS:
        found += f", on {mount}: each first call of a process reads from the network"
    return Answer("ok", found)


def limit() -> Answer:
    """What the cache may grow to."""
    most, used = eviction.max_bytes(), roots.cache_store().disk_bytes()
    found = f"{bytes_text(used)} of {bytes_text(most) if most is not None else 'any size'}"
    if most is not None and used > most:
        return Answer("warning", found, "orchard-jit prune, or set ORCHARD_JIT_CACHE_MAX_SIZE")
    return Answer("ok", found)


def builds() -> Answer:
    """Who compiles now, and what earlier builds have left. A lock can't be stale: it dies with its holder."""
    store = roots.cache_store()
    held = [path for path in (store.root / "v1" / ".locks").glob("*") if not lock.is_free(path)]
    holders = [f"{path.name[:10]} by {path.read_text(errors='replace')[:200]}" for path in held]
    rests = [*store.leftovers(), *store.kept()]
    kept = (
        f"{count_text(len(rests), 'folder')} of failed or ended builds (orchard-jit prune)" if rests else ""
    )
    return Answer("ok", "; ".join([*holders, *filter(None, [kept])]) or "none under way, nothing left behind")


def temporary() -> Answer:
    """The folder that the compiler writes to, and that stands in for a cache of no use."""
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        return Answer("problem", str(error), "set TMPDIR to a folder that can be written")
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {bytes_text(free)} free"
    if free < _LEAST_SPACE:
        return Answer("warning", f"{found}, which is little", "free some, or set TMPDIR to another folder")
    if roots.is_noexec(folder):
        return Answer("ok", f"{found}, noexec: it can't stand in for a cache that can't be written")
    return Answer("ok", found)


def prebuilt() -> Answer:
    """Folders of kernels that were compiled elsewhere."""
    named = [Path(name) for name in os.environ.get("ORCHARD_JIT_PREBUILT_DIRS", "").split(os.pathsep) if name]
    if missing := [str(path) for path in named if not path.is_dir()]:
        return Answer("warning", f"no folder: {', '.join(missing)}", "correct ORCHARD_JIT_PREBUILT_DIRS")
    stores = [store for store in roots.search_stores() if store.chosen]
    if not stores:
        return Answer("ok", "none")
    entries = [entry for store in stores for entry in store.entries()]
    place = f"{', '.join(str(store.root) for store in stores)}: {count_text(len(entries), 'library')}"
    if noexec := [str(store.root) for store in stores if roots.is_noexec(store.root)]:
        return Answer(
            "problem", f"{place}, mounted noexec: {', '.join(noexec)}", "copy them to another mount"
        )
    if damaged := [one for store in stores for one in store.damaged()]:
        return Answer("warning", f"{place}, damaged: {_faults(damaged)}", "copy them again")
    stale = {reason for entry in entries if (reason := eviction.why_stale(entry))}
    if stale and all(eviction.why_stale(entry) for entry in entries):
        return Answer("warning", f"{place}, none that this installation asks for: {'; '.join(sorted(stale))}",
                      "prebuild with the same versions of orchard_jit and torch")  # fmt: skip
    if not any(_is_for_this_machine(store) for store in stores):
        return Answer("warning", f"{place}, none for this platform and torch", "prebuild for this platform")
    return Answer("ok", place)


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


def operators() -> Answer:
    """Whether the operators can be loaded, and kernels run: in another process, which may not survive."""
    prebuild = "orchard-jit prebuild --operators"
    if next(checks.stored_operators(), None) is None:
        if library.offline():
            return Answer(
                "problem",
                "not compiled, and ORCHARD_JIT_OFFLINE forbids it",
                f"run `{prebuild}` without it, and where there is a compiler",
            )
        if checks.toolchain_text() is not None:
            return Answer(
                "problem",
                "not compiled, and they can't be on this machine",
                f"run `{prebuild}` elsewhere, and name the cache here in ORCHARD_JIT_PREBUILT_DIRS",
            )
        return Answer("ok", f"not compiled yet; the first call does it, or now: {prebuild}")
    reply = probe.call()
    if reply.fault is not None and "MissingVariantError" in reply.fault:
        return Answer("ok", "compiled; kernels are not yet, `orchard-jit smoke` tries them")
    if reply.fault is not None:
        return Answer(
            "problem", f"a call fails: {reply.fault}", f"orchard-jit clear --all --yes, then {prebuild}"
        )
    if not reply.facts["kernels"]:
        fix = "call orchard_jit.flash_attention, and ask orchard_jit.explain(query, key, value) why not"
        return Answer("problem", "a call works, but not by our kernels", fix)
    return Answer("ok", f"a call runs {count_text(reply.facts['kernels'], 'kernel')} of ours")


def _faults(damaged: Sequence[tuple[Path, str]]) -> str:
    return "; ".join(fault for _, fault in damaged)


def _is_for_this_machine(store: Store) -> bool:
    return any(entry.shelf.endswith(platform_tag()) for entry in store.entries())


def _mount_type(folder: Path) -> str:
    """As Linux calls it; empty elsewhere."""
    best = ("", "")
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
            _, place, kind = line.split()[:3]
            if folder.is_relative_to(place) and len(place) > len(best[0]):
                best = (place, kind)
    return best[1]
