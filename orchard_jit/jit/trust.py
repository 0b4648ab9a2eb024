"""Whose files may be loaded: whoever can write to a library can run code as us.

The cache must belong to us or to the superuser, and nobody else may write to it, down to each file that
is read. A prebuilt folder is somebody's whom the user has chosen to trust by naming it; it must merely not be
everybody's.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from orchard_jit.errors import CacheError

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe in a file's place would block
_LINK = "is a symbolic link"


class Damage(CacheError):  # noqa: N818  (what is found, and seldom an error)
    """An entry can't be used. The message says why."""


@contextmanager
def opened(path: Path, *, chosen: bool = False) -> Iterator[int]:
    """A file that can be trusted, open to be read for the length of a `with` block. Links are not followed.

    Args:
        path: The file.
        chosen: The user has named the folder that it lies in, whoever owns it.

    Raises:
        FileNotFoundError: There is none.
        Damage: It can't be trusted, or not be read, inside of the block either.

    """
    try:
        descriptor = os.open(path, _READ)
        try:
            if fault := _fault_of(os.fstat(descriptor), chosen, stat.S_ISREG):
                raise Damage(f"{path} {fault}")
            yield descriptor
        finally:
            os.close(descriptor)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        fault = _LINK if error.errno == errno.ELOOP else f"can't be read: {error.strerror}"
        raise Damage(f"{path} {fault}") from None


def require_root(root: Path, *, chosen: bool = False) -> None:
    """Refuse a root folder that others may change. It may be reached by a link of our own.

    Raises:
        CacheError: Whom it belongs to, or who may write to it, and what to do.

    """
    link = root.lstat()
    is_link = stat.S_ISLNK(link.st_mode)
    for status in (link, root.stat()) if is_link else (link,):
        if not chosen and status.st_uid not in (os.geteuid(), 0):
            raise CacheError(
                f"the cache {root} belongs to user id {status.st_uid}, not to you ({os.geteuid()}); "
                "set ORCHARD_JIT_CACHE_DIR to a folder of your own"
            )
    require_folders([root.resolve() if is_link else root], root, chosen=chosen)


def require_folders(folders: Iterable[Path], root: Path, *, chosen: bool = False) -> None:
    """Refuse folders of a root that others may change. Those that do not exist are passed over.

    Raises:
        CacheError: Which folder, why, and what to do.

    """
    for folder in folders:
        with suppress(FileNotFoundError, NotADirectoryError):
            if fault := folder_fault(folder, chosen=chosen):
                command = shlex.join(("chmod", "-R", "o-w" if chosen else "go-w", str(root)))
                raise CacheError(f"the folder {folder} {fault}; run: {command}, or use another folder")


def folder_fault(folder: Path, *, chosen: bool = False) -> str | None:
    """Why a folder that exists can't be trusted, or None if it can."""
    return _fault_of(folder.lstat(), chosen, stat.S_ISDIR)


def _fault_of(status: os.stat_result, chosen: bool, is_kind: Callable[[int], bool]) -> str | None:
    """Why something can't be trusted, or None if it can."""
    if not is_kind(status.st_mode):
        return _LINK if stat.S_ISLNK(status.st_mode) else "is no plain file or folder"
    if not chosen and status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user id {status.st_uid}"
    if status.st_mode & (stat.S_IWOTH if chosen else stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None
