"""Locks between processes that die with their holder.

Two kinds of files are locked, each by `flock`, which the operating system releases when the holder ends,
however it ends. There is no stale lock, nothing to time out, and no lock file is ever removed.

- `.locks/<key>`, exclusively, while that key is built: `held`. It only saves work: what makes two builders of
  one key harmless is the atomic rename in `store`.
- an entry's manifest, shared, for as long as a process has its library loaded: `hold`. Whoever removes an
  entry takes it exclusively first.

A file system without locks (some network mounts) costs double work, and never a wrong result.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_POLL_SECONDS = 0.05
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_SAYS_BYTES = 200
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def held(
    path: Path, on_wait: Callable[[str], None], go_on: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold the exclusive lock on `path` for the length of a `with` block.

    Args:
        path: The lock file; it and its folder are made when missing.
        on_wait: Called once, with a description of the holder, if somebody else holds the lock.
        go_on: Called again and again while waiting; what it raises ends the wait.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    try:
        told = False
        # Polled: Ctrl-C works, and so do mounts on which nobody can block.
        while not _taken(descriptor, fcntl.LOCK_EX, without_locks=True):
            if not told:
                on_wait(os.pread(descriptor, _SAYS_BYTES, 0).decode(errors="replace") or "another process")
                told = True
            go_on()
            time.sleep(_POLL_SECONDS)
        with suppress(OSError):  # on a full disk the next one waits for "another process"
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} since {time.strftime('%H:%M:%S')}".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # also frees the lock


def hold(path: Path) -> int | None:
    """Hold the shared lock on a file until the descriptor that is returned is closed, or the process ends.

    Returns:
        None if somebody is about to remove the file.

    Raises:
        OSError: It is gone, or can't be read.

    """
    return _locked(path, os.O_RDONLY, fcntl.LOCK_SH, without_locks=True)


def seize(path: Path) -> int | None:
    """Hold the exclusive lock on a file in the same way. None if anybody holds it, or might.

    Raises:
        OSError: It is gone, or can't be written.

    """
    return _locked(path, os.O_RDWR, fcntl.LOCK_EX, without_locks=False)


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock on `path` at this moment, beyond doubt."""
    try:
        descriptor = seize(path)
    except OSError:
        return False
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _locked(path: Path, access: int, kind: int, *, without_locks: bool) -> int | None:
    descriptor = os.open(path, access | _FLAGS)
    taken = False
    try:
        taken = _taken(descriptor, kind, without_locks=without_locks)
    finally:
        if not taken:
            os.close(descriptor)
    return descriptor if taken else None


def _taken(descriptor: int, kind: int, *, without_locks: bool) -> bool:
    """Whether the lock is ours now; `without_locks` answers where the file system has none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return without_locks
    return True
