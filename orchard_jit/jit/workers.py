"""Threads that build, and that Ctrl-C ends: with their compilers, at once, leaving nothing behind.

Signals reach the main thread alone, and a thread that waits for ninja can't be woken. So builds run on other
threads, whoever waits for them can be interrupted, and then ends the compilers that they wait for.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.02
_NOTICE_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0
_COMMAND_LETTERS = 15
"""All that the kernel keeps of a command's name."""

_this_thread = threading.local()


class Stopped(BaseException):
    """The build was interrupted. It never leaves this package: `workers` raises what interrupted it."""


class Workers:
    """A pool of threads; see `workers`."""

    def __init__(self, count: int) -> None:
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(count, "orchard_jit", initializer=self._enter)
        self._futures: list[Future[Any]] = []

    def submit(self, function: Any, *arguments: Any) -> Future[Any]:
        """Call a function on one of the threads."""
        self._futures.append(self._pool.submit(function, *arguments))
        return self._futures[-1]

    def ended(self) -> Iterator[Future[Any]]:
        """What has been submitted, as it ends.

        A wait without a limit may sleep through a signal that the system hands to another thread.
        """
        pending = set(self._futures)
        while pending:
            done, pending = wait(pending, _NOTICE_SECONDS, FIRST_COMPLETED)
            yield from done

    def finish(self) -> None:
        """Wait for all."""
        self._pool.shutdown()

    def stop(self) -> None:
        """End what runs, and begin nothing more."""
        self._stop.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(future.done() for future in self._futures) and time.monotonic() < deadline:
            if _kill_compilers():
                deadline = time.monotonic() + _PATIENCE_SECONDS  # for what follows from their end
            time.sleep(_POLL_SECONDS)

    def _enter(self) -> None:
        _this_thread.stop = self._stop


@contextmanager
def workers(count: int) -> Iterator[Workers]:
    """Threads for the length of a `with` block, which waits for them, unless it is left by an exception."""
    crew = Workers(count)
    try:
        yield crew
    except BaseException:
        crew.stop()
        raise
    crew.finish()


def inside() -> bool:
    """Whether this thread is one of them."""
    return hasattr(_this_thread, "stop")


def go_on() -> None:
    """Raise Stopped if this thread's pool has been interrupted."""
    if inside() and _this_thread.stop.is_set():
        raise Stopped


def _kill_compilers() -> bool:
    """Kill every ninja and compiler that this process has started, with all their children; were there any?

    It is what Ctrl-C does in a terminal; but not every interrupt comes from one, and a compiler that hangs
    may be deaf to it.
    """
    compiler = Path(shlex.split(os.environ.get("CXX", "c++"))[0]).name
    names = ("ninja", compiler[:_COMMAND_LETTERS])
    doomed = [process for process, name in _children(os.getpid()) if name in names]
    for process in doomed:
        _kill_tree(process)
    return bool(doomed)


def _kill_tree(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)  # or it could start another one behind our back
        for child, _ in _children(process):
            _kill_tree(child)
        os.kill(process, signal.SIGKILL)


def _children(parent: int) -> list[tuple[int, str]]:
    """Number and name of the processes that a process has started."""
    table = _linux_table() if sys.platform == "linux" else _posix_table()
    return [(process, name) for process, its_parent, name in table if its_parent == parent]


def _linux_table() -> Iterator[tuple[int, int, str]]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            before, name_and_rest = status.read_text(errors="replace").split("(", 1)
            name, rest = name_and_rest.rsplit(")", 1)
            yield int(before), int(rest.split()[1]), name


def _posix_table() -> Iterator[tuple[int, int, str]]:
    words = ["ps", "-A", "-o", "pid=,ppid=,comm="]
    for line in subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines():
        process, parent, command = line.split(None, 2)
        yield int(process), int(parent), Path(command).name[:_COMMAND_LETTERS]
