"""Whole files and folders: read, summed up, measured.

A hit reads some thirty files before it can load anything, for which `pathlib` takes three times as long.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

_CHUNK_BYTES = 1 << 16
"""Little enough to be read into the same memory again and again."""


def beginning(descriptor: int, most_bytes: int) -> bytes:
    """What an open file holds, or about so many bytes of it."""
    return b"".join(islice(_chunks(descriptor), most_bytes // _CHUNK_BYTES))


def size_and_sha256(descriptor: int) -> tuple[int, str]:
    """Size and hexadecimal SHA-256 of what an open file holds."""
    digest = hashlib.sha256()
    return _add(digest, descriptor), digest.hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    _add_file(digest, path)
    return digest.hexdigest()


def folder_sha256(folder: Path) -> str:
    """Hexadecimal SHA-256 of the names and contents of all files that lie right in a folder."""
    with os.scandir(folder) as inside:
        names = sorted(entry.name for entry in inside if entry.is_file())
    digest = hashlib.sha256()
    for name in names:
        size = _add_file(digest, f"{folder}/{name}")
        digest.update(f"\0{name}\0{size}\0".encode())
    return digest.hexdigest()


def disk_bytes(directory: Path) -> int:
    """Of all files below a folder that are still there when they are asked for."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total


def _add_file(digest: hashlib._Hash, path: Path | str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _add(digest, descriptor)
    finally:
        os.close(descriptor)


def _add(digest: hashlib._Hash, descriptor: int) -> int:
    """Sum up an open file; returns its size."""
    size = 0
    for chunk in _chunks(descriptor):
        digest.update(chunk)
        size += len(chunk)
    return size


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        yield chunk
