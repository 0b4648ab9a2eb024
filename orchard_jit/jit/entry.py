"""One finished library on disk: what is known of it, whether it is whole, and who uses it."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchard_jit.jit import files, lock, trust
from orchard_jit.jit import manifest as manifests
from orchard_jit.jit.trust import Damage

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
        chosen: Whether it lies in a folder that the user has named, see `trust`.

    """

    directory: Path
    manifest: Mapping[str, Any]
    chosen: bool = False

    @classmethod
    def read(cls, directory: Path, *, chosen: bool = False) -> Entry:
        """What lies in a folder, whose library nobody has looked at yet.

        Raises:
            FileNotFoundError: There is no entry, or not yet.
            Damage: Its manifest can't be trusted or read, or it lies.

        """
        return cls(directory, manifests.read(directory, chosen=chosen), chosen)

    @property
    def manifest_path(self) -> Path:
        """What is locked while the entry is in use."""
        return self.directory / manifests.FILE

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
        return files.disk_bytes(self.directory)

    @property
    def used(self) -> float:
        """When it was last loaded, to the day, or else made."""
        return self.manifest_path.lstat().st_mtime

    def hold(self) -> bool:
        """Keep the entry from being evicted for as long as this process lives, and note that it is used.

        Returns:
            False if it is gone, or about to be.

        """
        try:
            descriptor = lock.hold(self.manifest_path)
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

    def verify(self) -> None:
        """Compare the library with the manifest, to the last bit.

        Raises:
            Damage: What is wrong.

        """
        try:
            if fault := trust.folder_fault(self.directory, chosen=self.chosen):
                raise Damage(f"{self.directory} {fault}")
            with trust.opened(self.library, chosen=self.chosen) as descriptor:
                size, sha256 = files.size_and_sha256(descriptor)
        except FileNotFoundError:
            raise Damage(f"{self.library} is missing") from None
        if size != self.manifest["size"]:
            raise Damage(f"{self.library} has {size} bytes, its manifest says {self.manifest['size']}")
        if sha256 != self.manifest["sha256"]:
            raise Damage(f"{self.library} has another SHA-256 than its manifest says")
