"""How much memory builds may use together, so that many at a time don't make the system kill one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUILD_BYTES = {"binding": 1_400_000_000, "variant": 150_000_000}
"""What compilers take. GCC 12: 640 MB for each of the operators' two files, 64 to 116 MB for a kernel."""

_CGROUPS = Path("/sys/fs/cgroup")


class Budget:
    """Bytes that threads share. Whoever wants more than there ever were gets all of them, alone."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._users = 0
        self._changed = threading.Condition()

    @contextmanager
    def share(self, size: int) -> Iterator[None]:
        """Wait until so many bytes are free, and use them for the length of a `with` block."""
        with self._changed:
            self._changed.wait_for(lambda: size <= self._free or not self._users)
            self._take(size, user=1)
        try:
            yield
        finally:
            with self._changed:
                self._take(-size, user=-1)
                self._changed.notify_all()

    def _take(self, size: int, user: int) -> None:
        self._free -= size
        self._users += user


def available_bytes() -> int:
    """What this process may still use, of the machine and of the container that it runs in."""
    return min([_of_machine(), *_of_containers()])


def _of_machine() -> int:
    with suppress(OSError), Path("/proc/meminfo").open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # macOS tells what there is, not what is free.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_containers() -> Iterator[int]:
    """What each control group that this process is in, down from the root, leaves free."""
    with suppress(OSError):
        here = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()[-1].rpartition(":")[2]
        group = _CGROUPS / here.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(_CGROUPS):
                yield from _left(folder)


def _left(folder: Path) -> Iterator[int]:
    with suppress(OSError, ValueError):  # no such file, or "max"
        limit = int((folder / "memory.max").read_text())
        yield max(limit - int((folder / "memory.current").read_text()), 0)
