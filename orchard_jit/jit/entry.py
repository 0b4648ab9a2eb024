"""One finished library on disk: what is known of it, whether it is whole, and who uses it."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchard_jit.jit import lock, trust
from orchard_jit.jit import manifest as manifests

_USE_SECONDS = 86400.0
"""How exactly use is known. A hit writes nothing in between."""

_MOST_HELD = 64
"""A descriptor each, of the 256 that a process has on a Mac. What was loaded before these may be evicted."""

_held: deque[int] = deque()


@dataclass(frozen=True)
class Entry:
    """One finished library.

    Attributes:
        directory: Where it lies.
        manifest: What it is; the module `manifest` says which fields can be relied on.

    """

    directory: Path
    manifest: Mapping[str, Any]

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.directory / str(self.manifest["library"])

    @property
    def key(self) -> str:
        """The recipe's key, which is also the directory's name."""
        return self.directory.name

    @property
    def shelf(self) -> str:
        """What the library can run on."""
        return self.directory.parent.name

    @property
    def title(self) -> str:
        """What it is called in messages."""
        return str(self.manifest["title"])

    @property
    def disk_bytes(self) -> int:
        """Of the library and what lies beside it."""
        return disk_bytes(self.directory)

    @property
    def used(self) -> float:
        """When it was last loaded, to the day, or else made."""
        return (self.directory / manifests.FILE).lstat().st_mtime

    def hold(self) -> bool:
        """Keep the entry from being evicted for as long as this process lives, and note that it is used.

        Returns:
            False if it is gone, or about to be.

        """
        try:
            descriptor = lock.hold(self.directory / manifests.FILE)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # no descriptors left, perhaps: a library goes on working without its file
        if descriptor is None:
            return False
        if abs(time.time() - os.fstat(descriptor).st_mtime) > _USE_SECONDS:
            with suppress(OSError):  # read-only
                os.utime(descriptor)
        _held.append(descriptor)
        if len(_held) > _MOST_HELD:
            os.close(_held.popleft())
        return True

    def damage(self, *, chosen: bool = False) -> str | None:
        """What is wrong with the entry's files, or None if they are as the manifest says.

        Args:
            chosen: It lies in a folder that the user has named, see `trust`.

        """
        try:
            for path in (self.directory, self.directory / manifests.FILE, self.library):
                if fault := trust.fault(path, chosen=chosen):
                    return f"{path} {fault}"
            content = self.library.read_bytes()
        except OSError as error:
            return f"{self.library} can't be read: {error}"
        if len(content) != self.manifest["size"]:
            return f"{self.library} has {len(content)} bytes, its manifest says {self.manifest['size']}"
        if hashlib.sha256(content).hexdigest() != self.manifest["sha256"]:
            return f"{self.library} has another SHA-256 than its manifest says"
        return None


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def disk_bytes(directory: Path) -> int:
    """Of all files below a folder that are still there when they are asked for."""
    total = 0
    for path in directory.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total
