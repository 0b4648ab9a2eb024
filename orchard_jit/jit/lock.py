"""A lock between processes that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_SECONDS = 0.05


@contextmanager
def held(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive `flock` on `path` for the length of a `with` block.

    The operating system frees the lock when its holder ends, however it ends, and the file is never
    removed, so there is no stale lock and no race between unlinking and locking. The lock only saves
    work: it is the atomic rename in `store` that makes two builders of one key harmless.

    Args:
        path: The lock file; it and its folder are made when missing.
        on_wait: Called once, with a description of the holder, if somebody else holds the lock.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _acquire(descriptor, on_wait)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} since {time.strftime('%H:%M:%S')}".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # also frees the lock


def _acquire(descriptor: int, on_wait: Callable[[str], None]) -> None:
    told = False
    while True:  # polled, so that Ctrl-C works and a network file system without blocking locks does too
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                on_wait(os.pread(descriptor, 200, 0).decode(errors="replace") or "another process")
                told = True
            time.sleep(_POLL_SECONDS)
        else:
            return
