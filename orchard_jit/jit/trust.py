"""Whose files may be loaded: whoever can write to a library can run code as us.

The cache must belong to us or to the superuser, and nobody else may write to it, down to each file that
is read. A prebuilt folder is somebody's whom the user has chosen to trust by naming it; it must merely not be
everybody's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from orchard_jit.errors import CacheError


def fault(path: Path, *, chosen: bool = False) -> str | None:
    """Why what lies at `path` can't be trusted, or None if it can. Links are not followed.

    Args:
        path: A file or folder that exists.
        chosen: The user has named the folder that it lies in, whoever owns it.

    """
    return _fault_of(path.lstat(), chosen)


def require_root(root: Path, *, chosen: bool = False) -> None:
    """Refuse a root folder that others may change. It may be reached by a link of our own.

    Raises:
        CacheError: Whom it belongs to, or who may write to it, and what to do.

    """
    link = root.lstat()
    for status in (link, root.stat()) if stat.S_ISLNK(link.st_mode) else (link,):
        if not chosen and status.st_uid not in (os.geteuid(), 0):
            raise CacheError(
                f"the cache {root} belongs to user id {status.st_uid}, not to you ({os.geteuid()}); "
                "set ORCHARD_JIT_CACHE_DIR to a folder of your own"
            )
    require_folders([root.resolve()], root, chosen=chosen)


def require_folders(folders: Iterable[Path], root: Path, *, chosen: bool = False) -> None:
    """Refuse folders of a root that others may change. Those that do not exist are passed over.

    Raises:
        CacheError: Which folder, why, and what to do.

    """
    for folder in folders:
        try:
            found = fault(folder, chosen=chosen)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if found is not None:
            raise CacheError(f"the folder {folder} {found}; run: chmod -R go-w {root}, or use another folder")


def _fault_of(status: os.stat_result, chosen: bool) -> str | None:
    if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
        return "is a symbolic link" if stat.S_ISLNK(status.st_mode) else "is no plain file"
    if not chosen and status.st_uid not in (os.geteuid(), 0):
        return f"belongs to user id {status.st_uid}"
    if status.st_mode & (stat.S_IWOTH if chosen else stat.S_IWGRP | stat.S_IWOTH):
        return f"may be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None
