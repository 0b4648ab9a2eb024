"""What a person is told while something compiles: a line at the start, a heartbeat, a line at the end.

On stderr. `ORCHARD_JIT_QUIET=1` silences it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_HEARTBEAT_SECONDS = 5.0


def say(text: str) -> None:
    """One line on stderr."""
    if os.environ.get("ORCHARD_JIT_QUIET", "") in ("", "0"):
        print(f"orchard_jit: {text}", file=sys.stderr, flush=True)


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
