"""What a person is told while something takes long: a line at the start, a heartbeat, a line at the end.

Many things in a row have one bar instead, on a terminal. On stderr. `ORCHARD_JIT_QUIET=1` silences it.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HEARTBEAT_SECONDS = 5.0
_BAR_WIDTH = 24

_bars = threading.Event()


def say(text: str) -> None:
    """One line on stderr. While a bar is drawn there, nothing."""
    if not _is_quiet() and not _bars.is_set():
        sys.stderr.write(f"orchard_jit: {text}\n")  # with its end, or another thread's gets in between
        sys.stderr.flush()


@contextmanager
def bar() -> Iterator[Callable[[str, float], None]]:
    """On a terminal, a bar in place of all lines; it is gone afterwards.

    Yields:
        draw(title, share): Draws it anew, for a share from 0 to 1.

    """
    if _is_quiet() or _bars.is_set() or not sys.stderr.isatty():
        yield lambda title, share: None
        return

    def draw(title: str, share: float) -> None:
        done = round(min(max(share, 0.0), 1.0) * _BAR_WIDTH)
        line = f"{'━' * done}{'─' * (_BAR_WIDTH - done)}  {title}"
        shown = line[: shutil.get_terminal_size().columns - 1]
        print(f"\r\033[K{shown}", end="", file=sys.stderr, flush=True)

    _bars.set()
    try:
        yield draw
    finally:
        _bars.clear()
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _is_quiet() -> bool:
    return os.environ.get("ORCHARD_JIT_QUIET", "") not in ("", "0")


@contextmanager
def compiling(title: str, place: str, expected_seconds: float) -> Iterator[None]:
    """Announce a build, keep saying that it is alive, and say how long it took.

    Args:
        title: What is built.
        place: Where the result will lie.
        expected_seconds: How long such builds have taken.

    """
    say(f"compiling {title} into {place} (about {expected_seconds:.0f} s)")
    started = time.monotonic()
    finished = threading.Event()

    def beat() -> None:
        while not finished.wait(_HEARTBEAT_SECONDS):
            say(f"still compiling {title}: {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        say(f"compiling {title} failed after {time.monotonic() - started:.1f} s")
        raise
    else:
        say(f"compiled {title} in {time.monotonic() - started:.1f} s")
    finally:
        finished.set()
        thread.join()
