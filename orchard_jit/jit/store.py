"""Where finished libraries lie, and how one is found, verified, published and removed.

    <root>/v1/<shelf>/<key>/      orchard_<key>.so  manifest.json  build.log  src/
    <root>/v1/.locks/<key>        see `lock`; never removed
    <root>/v1/.staging/<unique>/  entries in the making
    <root>/v1/.quarantine/<key>-* damaged entries, kept to be looked at

An entry is made in `.staging` and renamed into its place, so it is either whole or not there. Its
manifest is written last and holds the library's size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchard_jit.errors import CacheError

LAYOUT = "v1"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """One finished library.

    Attributes:
        directory: Where it lies.
        manifest: What it is: spec, key inputs, toolchain, sizes, SHA-256, build seconds.

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

    def damage(self) -> str | None:
        """What is wrong with the library file, or None if it is as the manifest says."""
        try:
            size = self.library.stat().st_size
            if size != self.manifest["size"]:
                return f"{self.library} has {size} bytes, its manifest says {self.manifest['size']}"
            if file_sha256(self.library) != self.manifest["sha256"]:
                return f"{self.library} has another SHA-256 than its manifest says"
        except (OSError, KeyError) as error:
            return f"{self.directory} cannot be read: {error!r}"
        return None


class Store:
    """One root folder of entries. A read-only root is searched and never changed."""

    def __init__(self, root: Path, *, writable: bool) -> None:
        self.root = root
        self.writable = writable
        self._base = root / LAYOUT

    def find(self, shelf: str, key: str) -> Entry | None:
        """The verified entry of that key, or None.

        A damaged one is moved to the quarantine if the root is writable, so that it is built again,
        and passed over with a warning if it is not.
        """
        directory = self._base / shelf / key
        entry = self._read(directory)
        if entry is None:
            return None
        damage = entry.damage()
        if damage is None:
            return entry
        if self.writable:
            self._quarantine(directory)
            warnings.warn(f"orchard_jit: damaged cache entry set aside and rebuilt: {damage}", stacklevel=2)
        else:
            warnings.warn(f"orchard_jit: damaged prebuilt entry ignored: {damage}", stacklevel=2)
        return None

    def stage(self, key: str) -> Path:
        """A new private directory in which an entry can be made."""
        staging = self._folder(".staging")
        return Path(tempfile.mkdtemp(prefix=f"{key}-", dir=staging))

    def publish(self, staged: Path, shelf: str, key: str, manifest: Mapping[str, Any]) -> Entry | None:
        """Move a staged entry to its place.

        Returns:
            The entry, or None if somebody else has published the same key first.

        """
        manifest = {**manifest, "key": key, "shelf": shelf}
        library = staged / str(manifest["library"])
        manifest |= {"size": library.stat().st_size, "sha256": file_sha256(library)}
        _write_durably(staged / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        _sync(library)
        _sync(staged)
        directory = self._folder(shelf) / key
        for _ in range(2):
            try:
                staged.rename(directory)
            except OSError:
                if self._read(directory) is not None:
                    return None
                self._quarantine(directory)  # a directory without a manifest: nothing that anybody can use
            else:
                _sync(directory.parent)
                return Entry(directory, manifest)
        raise CacheError(f"cannot move {staged} to {directory}")

    def lock_path(self, key: str) -> Path:
        """The file to lock while that key is built."""
        return self._folder(".locks") / key

    def entries(self) -> Iterator[Entry]:
        """All entries with a readable manifest, unverified."""
        for directory in sorted(self._base.glob("[!.]*/*/")):
            entry = self._read(directory)
            if entry is not None:
                yield entry

    def remove(self, entry: Entry) -> None:
        """Delete an entry. Processes that have its library loaded are not disturbed."""
        doomed = self._folder(".staging") / f"removed-{entry.key}-{os.getpid()}"
        try:
            entry.directory.rename(doomed)  # at once gone for everybody, then deleted file by file
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)

    def _read(self, directory: Path) -> Entry | None:
        try:
            manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
            return Entry(directory, manifest) if isinstance(manifest["library"], str) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _folder(self, name: str) -> Path:
        folder = self._base / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _quarantine(self, directory: Path) -> None:
        place = Path(tempfile.mkdtemp(prefix=f"{directory.name}-", dir=self._folder(".quarantine")))
        try:
            directory.rename(place / directory.name)
        except FileNotFoundError:
            place.rmdir()  # somebody else has already moved it


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_durably(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """fsync, so that a crash after the rename cannot leave an entry whose contents never reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
