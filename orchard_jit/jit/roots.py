"""Which folders are searched for libraries, and which one new libraries go to.

Searched in order: `ORCHARD_JIT_PREBUILT_DIRS` (separated like `PATH`), the folder `_prebuilt` inside the
package, then the cache: `ORCHARD_JIT_CACHE_DIR`, else the platform's user cache directory.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
import warnings
from pathlib import Path

import platformdirs

from orchard_jit.errors import CacheError
from orchard_jit.jit.store import Store


def cache_root() -> Path:
    """The folder that the user, or else the platform, has named. It need not exist yet."""
    named = os.environ.get("ORCHARD_JIT_CACHE_DIR")
    return Path(named).expanduser().absolute() if named else Path(platformdirs.user_cache_dir("orchard_jit"))


def search_stores() -> list[Store]:
    """The stores to look into, in order. Nothing is created.

    Raises:
        CacheError: The cache belongs to, or may be written by, somebody else.

    """
    named = os.environ.get("ORCHARD_JIT_PREBUILT_DIRS", "").split(os.pathsep)
    packaged = Path(__file__).resolve().parent.parent / "_prebuilt"
    stores = [
        Store(root, writable=False) for root in (*(Path(n) for n in named if n), packaged) if root.is_dir()
    ]
    root = cache_root()
    if root.is_dir():
        _refuse_foreign(root)
        stores.append(Store(root, writable=_may_write(root)))
    temporary = _temporary_root(root, create=False)
    if temporary is not None:
        stores.append(Store(temporary, writable=True))
    return stores


def writable_store() -> Store:
    """The store that new libraries go to: the cache, or a private temporary folder if it can't be written.

    Raises:
        CacheError: The cache belongs to, or may be written by, somebody else.

    """
    root = cache_root()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        pass  # _may_write tells
    else:
        _refuse_foreign(root)
    if _may_write(root):
        return Store(root, writable=True)
    temporary = _temporary_root(root, create=True)
    assert temporary is not None
    return Store(temporary, writable=True)


def _may_write(root: Path) -> bool:
    return os.access(root, os.W_OK | os.X_OK)


def _refuse_foreign(root: Path) -> None:
    """Whoever can write to the cache can run code as us."""
    status = root.stat()
    if status.st_uid not in (os.geteuid(), 0):
        raise CacheError(
            f"the cache {root} belongs to user id {status.st_uid}, not to you ({os.geteuid()}); "
            "set ORCHARD_JIT_CACHE_DIR to a folder of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            f"the cache {root} may be written by others (mode {stat.S_IMODE(status.st_mode):o}); "
            f"run: chmod go-w {root}"
        )


_temporary_roots: dict[Path, Path] = {}


def _temporary_root(root: Path, *, create: bool) -> Path | None:
    """This process's replacement for a cache that it can't write; deleted when the process ends."""
    if create and root not in _temporary_roots:
        folder = Path(tempfile.mkdtemp(prefix="orchard_jit-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        warnings.warn(
            f"orchard_jit: the cache {root} can't be written; kernels compiled now are kept in {folder} "
            "and lost when this process ends. Set ORCHARD_JIT_CACHE_DIR to a writable folder.",
            stacklevel=2,
        )
        _temporary_roots[root] = folder
    return _temporary_roots.get(root)
