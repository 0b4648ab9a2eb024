"""Which folders are searched for libraries, and which one new libraries go to.

Searched in order: `ORCHARD_JIT_PREBUILT_DIRS` (separated like `PATH`), the folder `_prebuilt` inside the
package, an installed package `orchard_jit_cache`, which `orchard-jit wheel` makes, then the cache:
`ORCHARD_JIT_CACHE_DIR`, else the platform's user cache directory.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from orchard_jit.errors import CacheError
from orchard_jit.jit import trust
from orchard_jit.jit.store import Store

INSTALLED = "orchard_jit_cache"
"""The package whose folder is a root, wherever it is installed."""

_PACKAGED = Path(__file__).resolve().parent.parent / "_prebuilt"


def cache_root() -> Path:
    """The folder that the user, or else the platform, has named. It need not exist yet."""
    named = os.environ.get("ORCHARD_JIT_CACHE_DIR")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs  # not at the top: `orchard-jit doctor` says it when it is missing

    return Path(platformdirs.user_cache_dir("orchard_jit"))


def prebuilt_roots() -> list[Path]:
    """Folders of libraries that were compiled elsewhere: those that are named, then the package's own."""
    named = os.environ.get("ORCHARD_JIT_PREBUILT_DIRS", "").split(os.pathsep)
    return [*(Path(name) for name in named if name), _PACKAGED, *_installed_roots()]


@lru_cache
def _installed_roots() -> list[Path]:
    """Where an import would find the package. It is asked for in every process, and few have one."""
    folders = (os.path.join(folder, INSTALLED) for folder in sys.path)  # noqa: PTH118  (ten times as fast)
    return [Path(folder).absolute() for folder in folders if os.path.isdir(folder)][:1]  # noqa: PTH112


def search_stores() -> list[Store]:
    """The stores to look into, in order. Nothing is created.

    Raises:
        CacheError: A folder belongs to, or may be written by, somebody else.

    """
    stores = []
    for root in prebuilt_roots():
        if root.is_dir():
            trust.require_root(root, chosen=True)
            stores.append(Store(root, writable=False, chosen=True))
    root = cache_root()
    if root.is_dir():
        trust.require_root(root)
        if not is_noexec(root):
            stores.append(Store(root, writable=_may_write(root)))
    if root in _temporary:
        stores.append(Store(_temporary[root], writable=True))
    return stores


def writable_store() -> Store:
    """The store that new libraries go to: the cache, or a private temporary folder if it can't be used.

    Raises:
        CacheError: The cache belongs to, or may be written by, somebody else.

    """
    root = cache_root()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return temporary_store(error.strerror or str(error))
    trust.require_root(root)
    if not _may_write(root):
        return temporary_store("Permission denied")
    if is_noexec(root):
        return temporary_store("mounted noexec, no library can be loaded from there")
    return Store(root, writable=True)


def cache_store() -> Store:
    """The cache as it is, there or not, for commands that keep it in order.

    Raises:
        CacheError: It belongs to, or may be written by, somebody else.

    """
    root = cache_root()
    if root.is_dir():
        trust.require_root(root)
    return Store(root, writable=_may_write(root))


def temporary_store(reason: str) -> Store:
    """This process's replacement for a cache that it can't write; deleted when the process ends.

    Raises:
        CacheError: Libraries can't be kept in the temporary folder either.

    """
    root = cache_root()
    if root not in _temporary:
        remedy = "Set ORCHARD_JIT_CACHE_DIR to a folder that can be written, on a mount that is not noexec."
        try:
            folder = Path(tempfile.mkdtemp(prefix="orchard_jit-"))
        except OSError as error:
            raise CacheError(
                f"neither the cache {root} can be used ({reason}) nor a temporary folder: {error}. {remedy}"
            ) from None
        atexit.register(_remove_if_ours, folder, os.getpid())
        if is_noexec(folder):
            raise CacheError(f"the cache {root} can't be used ({reason}), and {folder} is noexec. {remedy}")
        warnings.warn(
            f"orchard_jit: the cache {root} can't be written ({reason}); kernels compiled now are kept in "
            f"{folder} and lost when this process ends. {remedy}",
            stacklevel=2,
        )
        _temporary[root] = folder
    return Store(_temporary[root], writable=True)


@lru_cache
def is_noexec(folder: Path) -> bool:
    """Whether libraries in this folder can't be loaded. Python can tell on Linux alone."""
    return bool(os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0))


def _may_write(root: Path) -> bool:
    return os.access(root, os.W_OK | os.X_OK)


_temporary: dict[Path, Path] = {}
"""What stands in for which cache."""


def _remove_if_ours(folder: Path, process: int) -> None:
    if os.getpid() == process:  # and not a fork of it, which ends first
        shutil.rmtree(folder, ignore_errors=True)
