"""Native libraries that are built once: found by the hash of everything that goes into them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

JOBS = int(os.environ.get("MAX_JOBS", "2"))


def cache_root() -> Path:
    """Where builds are kept: ``SOFTWARE_MAC_CACHE``, else the user's cache directory."""
    chosen = os.environ.get("SOFTWARE_MAC_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(chosen) if chosen else base / "software_mac"
    root.mkdir(parents=True, exist_ok=True)
    return root.resolve()


@dataclass(frozen=True)
class Unit:
    """One source file and the command that compiles it; ``-c source -o object`` is added."""

    source: Path
    command: Sequence[str]


def fingerprint(files: Iterable[Path], words: Iterable[object]) -> str:
    """A name for what a build is made of: the bytes of ``files`` and the ``words`` beside them."""
    digest = hashlib.sha256()
    for file in sorted(files):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode() + content)
    for word in words:
        digest.update(f"{word}\n".encode())
    return digest.hexdigest()[:20]


def build_library(name: str, units: Sequence[Unit], headers: Iterable[Path], link: Sequence[str]) -> Path:
    """Compiles ``units`` and links them as ``name``, unless the same library is there already."""
    shared = list(headers)
    compiles = [(_object_file(unit, shared), [*unit.command, "-c", str(unit.source)]) for unit in units]
    linking = ["g++", "-shared", *(str(file) for file, _ in compiles), f"-Wl,-soname,{name}", *link]
    library = cache_root() / "libraries" / fingerprint([], linking) / name
    if not library.exists():
        with _alone(), ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(_make, *zip(*compiles, strict=True)))
            _make(library, linking)
    return library


def build_header(text: str, command: Sequence[str], include: Path) -> Path:
    """Precompiles the header ``text``, unless that was done; ``include`` holds what it may be made of."""
    name = fingerprint(include.rglob("*.h"), [*command, text, str(include)])  # it names where these lie
    header = cache_root() / "headers" / f"{name}.h"
    compiled = header.with_suffix(".pch")
    if not compiled.exists():
        with _alone():
            header.parent.mkdir(parents=True, exist_ok=True)
            header.write_text(text)
            _make(compiled, [*command, "-Xclang", "-fno-pch-timestamp", str(header)])
    return compiled


def _object_file(unit: Unit, headers: Sequence[Path]) -> Path:
    return (
        cache_root()
        / "objects"
        / f"{unit.source.stem}-{fingerprint([unit.source, *headers], unit.command)}.o"
    )


def _make(target: Path, command: Sequence[str]) -> None:
    """Runs ``command -o target``, unless the target is there; a reader never sees half a file."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as staging:
        fresh = Path(staging) / target.name
        _run([*command, "-o", str(fresh)])
        fresh.rename(target)


@contextmanager
def _alone() -> Iterator[None]:
    """One process builds at a time; those that wait then find everything built."""
    with (cache_root() / "building.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
