"""What leaves a cache that is too large or too old: stale versions first, then what was used least recently.

What a process has loaded stays. Prebuilt folders are never touched. Times decide the order, and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

from orchard_jit.errors import CacheError
from orchard_jit.jit.entry import Entry
from orchard_jit.jit.recipe import ABI_VERSION
from orchard_jit.jit.render import folder_sha256
from orchard_jit.jit.store import Store

DEFAULT_BYTES = 4_000_000_000
"""Some 20 000 libraries of 0.2 MB: more than anybody needs, and an end to a search that has run away."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_PUBLICATIONS_BETWEEN = 64
_LEAVES_FREE = 0.9
"""Of the limit, so that not every further library evicts another one."""


@dataclass(frozen=True)
class Candidate:
    """An entry that may go, with its size on disk and the reason."""

    entry: Entry
    disk_bytes: int
    reason: str


def after_publishing(store: Store) -> None:
    """Keep a cache below its limit. It is measured at a process's first publication, and now and then."""
    global _publications
    _publications += 1
    if _publications % _PUBLICATIONS_BETWEEN != 1:
        return
    try:
        limit = max_bytes()
    except CacheError as error:  # what was asked for is built, and a limit is no reason to lose it
        warnings.warn(f"orchard_jit: {error}", stacklevel=2)
        return
    if limit is not None and store.disk_bytes() > limit:
        for candidate in candidates(store, most_bytes=int(limit * _LEAVES_FREE)):
            store.remove(candidate.entry)


_publications = 0


def max_bytes() -> int | None:
    """The limit that `ORCHARD_JIT_CACHE_MAX_SIZE` sets, or the default; None for "off".

    Raises:
        CacheError: It can't be read.

    """
    text = os.environ.get("ORCHARD_JIT_CACHE_MAX_SIZE", "")
    if text.lower() in ("off", "0"):
        return None
    try:
        return bytes_of(text) if text else DEFAULT_BYTES
    except ValueError as error:
        raise CacheError(f"ORCHARD_JIT_CACHE_MAX_SIZE: {error}, or off") from None


def bytes_of(text: str) -> int:
    """A size such as "500 MB" or "2GB".

    Raises:
        ValueError: What came and what is accepted.

    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?", text.strip().lower())
    if match is None:
        raise ValueError(f"a size must be written as 500MB or 2GB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def candidates(
    store: Store, *, most_bytes: int | None = None, most_seconds: float | None = None, stale: bool = False
) -> list[Candidate]:
    """What has to go, in this order, whoever holds it.

    Args:
        store: A cache.
        most_bytes: What its entries may take up together.
        most_seconds: How long an entry may be unused.
        stale: Whether everything goes that this package and this PyTorch have no use for.

    """
    now = time.time()
    aged = [(why_stale(entry), now - entry.used, entry) for entry in store.entries()]
    aged.sort(key=lambda row: (row[0] is None, -row[1]))
    sizes = {entry.directory: entry.disk_bytes for _, _, entry in aged}
    too_many = sum(sizes.values()) - most_bytes if most_bytes is not None else 0
    chosen = []
    for old_version, idle, entry in aged:
        if stale and old_version:
            reason = old_version
        elif most_seconds is not None and idle > most_seconds:
            reason = f"not used for {idle / 86400:.0f} days"
        elif too_many > 0:
            reason = old_version or "least recently used"
        else:
            continue
        chosen.append(Candidate(entry, sizes[entry.directory], reason))
        too_many -= sizes[entry.directory]
    return chosen


def why_stale(entry: Entry) -> str | None:
    """Why nothing that is installed here would ask for an entry, or None if something may."""
    return next(_staleness(entry), None)


def _staleness(entry: Entry) -> Iterator[str]:
    ((kind, spec),) = entry.manifest["spec"].items()
    if kind == "binding" and (torch := _torch_version()) not in (None, spec.get("torch")):
        yield f"for torch {spec.get('torch')}, and {torch} is installed"
    origin = _object(_object(entry.manifest, "key_inputs"), "origin")
    abi = _object(origin, "values").get("abi_version", ABI_VERSION)
    if abi != ABI_VERSION:
        yield f"for plug-in interface {abi}, this is {ABI_VERSION}"
    if any(_sources_now(folder) != digest for folder, digest in _object(origin, "templates").items()):
        yield "from sources of another version"


def _object(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """One that may be missing, or be anything."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}


@lru_cache
def _sources_now(folder: str) -> str | None:
    try:
        return folder_sha256(folder)
    except OSError:
        return None


@lru_cache
def _torch_version() -> str | None:
    """As the operators' manifests have it; None if there is no PyTorch."""
    if "torch" in sys.modules:
        return str(sys.modules["torch"].__version__)
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
