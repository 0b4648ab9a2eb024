"""Where finished libraries lie, and how one is found, verified, published and removed.

    <root>/v1/<shelf>/<key>/      orchard_<key>.so  manifest.json  build.ninja  src/
    <root>/v1/.locks/<key>        see `lock`; never removed
    <root>/v1/.staging/<unique>/  entries in the making, and on their way out
    <root>/v1/.damaged/<unique>/  entries that were set aside, see `leftovers`
    <root>/v1/.failed/<unique>/   builds that failed

An entry is made in `.staging` and renamed into its place, so it is either whole or not there. Its manifest is
written last and holds the library's size and SHA-256. No result depends on a clock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchard_jit.jit import files, leftovers, lock, trust
from orchard_jit.jit import manifest as manifests
from orchard_jit.jit.entry import Entry
from orchard_jit.jit.trust import Damage

__all__ = ["LAYOUT", "Entry", "Store"]

LAYOUT = "v1"

_VISIBLE_SECONDS = 600.0
"""After which every machine sees what another has written to a network mount; most take one minute."""


class Store:
    """One root folder of entries. A read-only root is searched and never changed."""

    def __init__(self, root: Path, *, writable: bool, chosen: bool = False) -> None:
        """Nothing is created.

        Args:
            root: The folder.
            writable: Whether it may be changed.
            chosen: Whether the user has named it as prebuilt, see `trust`.

        """
        self.root = root
        self.writable = writable
        self.chosen = chosen
        self._base = root / LAYOUT

    def find(self, shelf: str, key: str) -> Entry | None:
        """The verified entry of that key, or None. A damaged one is set aside.

        Raises:
            CacheError: Others can write to the folders on the way to it.

        """
        directory = self._base / shelf / key
        trust.require_folders((self._base, directory.parent), self.root, chosen=self.chosen)
        try:
            entry = Entry.read(directory, chosen=self.chosen)
            entry.verify()
        except FileNotFoundError:
            return None
        except Damage as damage:
            self.set_aside(directory, str(damage))
            return None
        return entry

    def set_aside(self, directory: Path, damage: str) -> None:
        """Take an entry out of the way, so that it is built again; in a read-only root, only say so."""
        if self.writable:
            self.move_aside(directory)
            warnings.warn(f"orchard_jit: damaged cache entry set aside and rebuilt: {damage}", stacklevel=3)
        else:
            warnings.warn(f"orchard_jit: damaged prebuilt entry ignored: {damage}", stacklevel=3)

    def move_aside(self, directory: Path) -> bool:
        """The same without a word. False if it can't be moved, or somebody else has already done it."""
        with suppress(OSError):
            leftovers.keep(directory, self._folder(".damaged"))
            return True
        return False

    def lock_path(self, key: str) -> Path:
        """The file to lock while that key is built."""
        return self._folder(".locks") / key

    def stage(self, key: str) -> Path:
        """A new private directory in which an entry can be made, by whoever holds the lock of its key."""
        return Path(tempfile.mkdtemp(prefix=leftovers.staging_name(key), dir=self._folder(".staging")))

    def publish(self, staged: Path, shelf: str, key: str, manifest: Mapping[str, Any]) -> Entry | None:
        """Move a staged entry to its place.

        Returns:
            The entry, or None if somebody else has published the same key first.

        Raises:
            OSError: It can't be written; what is staged is still there.

        """
        library = staged / str(manifest["library"])
        manifest = {"created": int(time.time()), **manifest, "key": key, "shelf": shelf}
        manifest |= {"size": library.stat().st_size, "sha256": files.sha256(library)}
        manifests.checked(manifest, staged / manifests.FILE, shelf, key)
        (staged / manifests.FILE).write_text(manifests.text(manifest), encoding="utf-8")
        for path in (staged, *staged.rglob("*")):  # others may read a prebuilt cache, and write none
            path.chmod(0o755 if path.is_dir() or path == library else 0o644)
        for path in (staged / manifests.FILE, library, staged):
            _sync(path)
        directory = self._folder(shelf) / key
        if not _moved(staged, directory):
            if not self._is_abandoned(directory):
                return None
            self.set_aside(directory, f"{directory} is no entry")
            if not _moved(staged, directory):
                return None
        _sync(directory.parent)
        return Entry(directory, manifest, self.chosen)

    def keep_failed(self, staged: Path) -> Path:
        """Keep the sources and the log of a build that failed; returns where."""
        return leftovers.keep(staged, self._folder(".failed"))

    def entries(self) -> Iterator[Entry]:
        """All entries with a readable manifest, unverified."""
        for directory in self.directories():
            with suppress(Damage, OSError):
                yield Entry.read(directory, chosen=self.chosen)

    def damaged(self) -> Iterator[tuple[Path, str]]:
        """The folders of all entries that can't be used, and why."""
        for directory in self.directories():
            try:
                Entry.read(directory, chosen=self.chosen).verify()
            except (Damage, OSError) as error:
                yield directory, str(error)

    def remove(self, entry: Entry, *, even_held: bool = False) -> bool:
        """Delete an entry, at once for everybody, unless a process holds it; say whether it is gone."""
        try:
            descriptor = (lock.hold if even_held else lock.seize)(entry.manifest_path)
        except FileNotFoundError:
            return True  # somebody else was quicker
        if descriptor is None:
            return False
        try:
            unique = f"{leftovers.staging_name(entry.key)}{os.getpid()}-{time.monotonic_ns()}"
            doomed = entry.directory.rename(self._folder(".staging") / unique)
        except FileNotFoundError:
            return True
        finally:
            os.close(descriptor)
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def leftovers(self) -> list[Path]:
        """What dead processes have left; it goes at the next build."""
        return leftovers.of_the_dead(self._base / ".staging", self._base / ".locks")

    def kept(self) -> list[Path]:
        """What is kept to be looked at: entries that were set aside, and builds that failed."""
        return [*self._base.glob(".damaged/*"), *self._base.glob(".failed/*")]

    def old_layouts(self) -> list[Path]:
        """What versions of this package have left that had another layout."""
        return [path for path in self.root.glob("v[0-9]*") if path.name[1:].isdigit() and path.name < LAYOUT]

    def disk_bytes(self) -> int:
        """Of everything in it."""
        return files.disk_bytes(self._base)

    def directories(self) -> list[Path]:
        """Where entries are, whatever state they are in."""
        return sorted(self._base.glob("[!.]*/*/"))

    def _is_abandoned(self, directory: Path) -> bool:
        """Whether what lies in an entry's place is none: damaged, or empty for too long to be news."""
        try:
            Entry.read(directory, chosen=self.chosen)
        except Damage:
            return True
        except OSError:
            with suppress(OSError):
                return time.time() - directory.lstat().st_mtime > _VISIBLE_SECONDS
        return False

    def _folder(self, name: str) -> Path:
        """One of the store's folders, made if need be, and as trusted as the root."""
        folders = (self._base, self._base / name)
        for folder in folders:
            with suppress(FileExistsError):
                folder.mkdir()
                folder.chmod(0o755)  # whatever the umask says
        trust.require_folders(folders, self.root, chosen=self.chosen)
        return self._base / name


def _moved(staged: Path, directory: Path) -> bool:
    """Rename a folder, unless there is one in its place."""
    try:
        staged.rename(directory)
    except OSError:
        if directory.is_symlink() or directory.exists():
            return False
        raise
    return True


def _sync(path: Path) -> None:
    """fsync, so that a crash after the rename cannot leave an entry whose contents never reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
