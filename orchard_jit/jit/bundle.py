"""Bundles: entries of a store in one archive, and back into a store of another machine.

    bundle.json                      every other member, with its size and SHA-256
    v1/<shelf>/<key>/manifest.json   as below a store's root: a bundle that is unpacked by
    v1/<shelf>/<key>/orchard_….so    other means is a folder for `ORCHARD_JIT_PREBUILT_DIRS`

The same entries make the same bytes. Whoever makes a bundle can run code on the machines that take it in;
what is verified is that they get what was sent, all of it, and nowhere but in the store.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from orchard_jit.errors import CacheError
from orchard_jit.jit import lock
from orchard_jit.jit.entry import Entry
from orchard_jit.jit.recipe import key_of
from orchard_jit.jit.store import LAYOUT, Store

SUFFIXES = (".tar.gz", ".tgz", ".tar.zst")
INDEX = "bundle.json"

_FORMAT = 1
_NAME = r"[0-9A-Za-z_][0-9A-Za-z_.+-]*"
_MEMBER = re.compile(rf"{LAYOUT}/{_NAME}/[0-9a-f]+/{_NAME}")
_LARGEST_INDEX = 64_000_000
_LARGEST_MEMBER = 256_000_000


@dataclass(frozen=True)
class Arrival:
    """An entry that a bundle brought, and whether the store did not have it yet."""

    entry: Entry
    new: bool


def members(entries: Sequence[Entry]) -> dict[str, Path]:
    """What travels of some entries, by path below a root: not the sources, which nothing runs."""
    return {
        f"{LAYOUT}/{entry.shelf}/{entry.key}/{path.name}": path
        for entry in sorted(entries, key=lambda entry: (entry.shelf, entry.key))
        for path in (entry.manifest_path, entry.library)
    }


def pack(entries: Sequence[Entry], archive: Path) -> None:
    """Write entries, which somebody has verified, to a new archive.

    Raises:
        CacheError: There is no such kind of archive, or no zstd on this Python.
        FileExistsError: The archive is there already.

    """
    contents = {name: path.read_bytes() for name, path in members(entries).items()}
    described = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    index = json.dumps({"format": _FORMAT, "members": described}, indent=1).encode()
    with _archive(archive, "w") as tar:
        for name, content in {INDEX: index, **contents}.items():
            member = tarfile.TarInfo(name)  # without a time, an owner or a mode of its own
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def unpack(archive: Path, store: Store, on_wait: Callable[[str], None]) -> list[Arrival]:
    """Publish the entries of an archive that the store does not have; what it has stays as it is.

    Args:
        archive: What `pack` has written.
        store: Where the entries go to.
        on_wait: Called with a description of another process that is taking a bundle in.

    Raises:
        CacheError: Something about the archive is not as it has to be. Then nothing has been published.

    """
    with lock.held(store.lock_path("import"), on_wait):
        staged = store.stage("import")
        try:
            for name, content in _verified_members(archive):
                path = staged / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            arrived = Store(staged, writable=False, chosen=True)
            for directory, damage in arrived.damaged():
                raise CacheError(f"{archive}: the entry {directory.name} is damaged: {damage}")
            entries = list(arrived.entries())
            for entry in entries:
                _require_own_key(archive, entry)
            return [_publish(store, entry) for entry in entries]
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def _publish(store: Store, entry: Entry) -> Arrival:
    there = store.find(entry.shelf, entry.key)
    published = None if there else store.publish(entry.directory, entry.shelf, entry.key, entry.manifest)
    return Arrival(there or published or entry, new=published is not None)


def _require_own_key(archive: Path, entry: Entry) -> None:
    """A key follows from what it is made of: a library can't be passed off as another one by mistake."""
    inputs = entry.manifest.get("key_inputs", {})
    if key_of(inputs) != entry.key or inputs["shelf"] != entry.shelf:
        raise CacheError(f"{archive}: the entry {entry.key} is made of what makes another key")


def _verified_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Every member beside the index, which names them all, with the content that it promises."""
    with _archive(archive, "r") as tar:
        inside = iter(tar)
        first = next(inside, None)
        if first is None or first.name != INDEX or not first.isreg() or first.size > _LARGEST_INDEX:
            raise CacheError(f"{archive} is no bundle: it does not begin with {INDEX}")
        expected = _expected(archive, _content(tar, first))
        for member in inside:
            if member.name not in expected:
                raise CacheError(f"{archive}: {member.name!r} is not in its index, or it comes twice")
            size, sha256 = expected.pop(member.name)
            if not member.isreg() or member.size != size:
                raise CacheError(f"{archive}: {member.name!r} is no file of {size} bytes, as its index says")
            content = _content(tar, member)
            if hashlib.sha256(content).hexdigest() != sha256:
                raise CacheError(f"{archive}: {member.name!r} has another SHA-256 than its index says")
            yield member.name, content
    if expected:
        raise CacheError(f"{archive} is incomplete: {next(iter(expected))!r} is missing")


def _expected(archive: Path, index: bytes) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 by name. A name that leads out of a store is refused here."""
    try:
        document = json.loads(index)
        if document["format"] != _FORMAT:
            raise CacheError(f"{archive} has format {document['format']}; this version reads {_FORMAT}")
        expected = {
            name: (int(described["size"]), str(described["sha256"]))
            for name, described in document["members"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{archive} has an index that can't be read: {error!r}") from None
    for name, (size, _) in expected.items():
        if not _MEMBER.fullmatch(name):
            raise CacheError(f"{archive}: {name!r} is no file of an entry")
        if size > _LARGEST_MEMBER:
            raise CacheError(f"{archive}: {name!r} would have {size} bytes, more than any library has")
    return expected


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None, "a regular file"
    return stream.read()


@contextmanager
def _archive(path: Path, mode: str) -> Iterator[tarfile.TarFile]:
    """The archive, compressed as its name says. What is written is there whole or not at all."""
    if not path.name.endswith(SUFFIXES):
        raise CacheError(f"{path}: a bundle is called {' or '.join(f'*{suffix}' for suffix in SUFFIXES)}")
    zstd = _zstd() if path.suffix == ".zst" else None
    damage = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, *((zstd.ZstdError,) if zstd else ()))
    with path.open("xb" if mode == "w" else "rb") as raw:
        try:
            stream: IO[bytes] = (
                zstd.open(raw, f"{mode}b") if zstd else gzip.GzipFile("", f"{mode}b", fileobj=raw, mtime=0)  # type: ignore[assignment]
            )
            with closing(stream), _tar(stream, mode) as tar:
                yield tar
        except damage as error:
            raise CacheError(f"{path} is no bundle, or a damaged one: {error}") from None
        except BaseException:
            if mode == "w":
                path.unlink()
            raise


def _tar(stream: IO[bytes], mode: str) -> tarfile.TarFile:
    return tarfile.open(fileobj=stream, mode=f"{mode}|")  # type: ignore[call-overload, no-any-return]


def _zstd() -> Any:
    """A module with `open` and `ZstdError`: Python's own, from 3.14 on, or the one from PyPI."""
    for name in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            return import_module(name)
    raise CacheError("this Python has no zstd: pip install zstandard, or use .tar.gz")
