"""How the commands speak: marks, colours for a terminal, columns, JSON for a program."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

MARKS = {"ok": "✓", "warning": "!", "failed": "✗", "problem": "✗", "not run": "–"}
_COLOURS = {"ok": "32", "warning": "33", "failed": "31", "problem": "31", "not run": "2"}
SHOWN_DIGITS = 10
"""Of a key, in tables. `orchard-jit show` takes any prefix that is unique."""

_BARS = "▁▂▃▄▅▆▇█"
_BAR_WIDTH = 24
_REFRESH_SECONDS = 0.2


class UsageError(Exception):
    """The arguments can be parsed but make no sense together. Exit code 2."""


def mark(state: str) -> str:
    """The sign of a state, one of `MARKS`, in colour on a terminal."""
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return f"\033[{_COLOURS[state]}m{MARKS[state]}\033[0m" if coloured else MARKS[state]


def print_json(value: Any) -> None:
    """One JSON document on stdout. JSON has no NaN and no infinity: they become null."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def fitted(text: str, *, used: int = 0) -> str:
    """The text, cut with an ellipsis where a terminal's line ends, `used` columns into it."""
    room = shutil.get_terminal_size().columns - used
    return f"{text[: room - 1]}…" if sys.stdout.isatty() and len(text) > room > 0 else text


def wrapped(text: str, indent: int) -> list[str]:
    """The text's lines, broken where they would leave the terminal when indented by so many columns."""
    room = min(shutil.get_terminal_size().columns, 100) - indent
    return [
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)
    ]


def sparkline(values: Sequence[float], low: float, high: float, width: int) -> str:
    """The values as a row of bars, `width` at most; each bar is the mean of its share of them."""
    count = min(width, len(values))
    edges = [len(values) * index // count for index in range(count + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] if math.isfinite(mean) else "?" for mean in means)


def bar(share: float) -> str:
    """How far something is, for a share from 0 to 1."""
    done = round(share * _BAR_WIDTH)
    return f"{'━' * done}{'─' * (_BAR_WIDTH - done)}"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines; every column but the last is padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def bytes_text(count: int) -> str:
    """As "812 B", "45.1 kB", "1.4 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def milliseconds(seconds: float) -> str:
    """As "0.0123 ms", "1.23 ms", "123 ms": three digits."""
    value = 1e3 * seconds
    digits = min(4, max(0, 2 - math.floor(math.log10(value)))) if value > 0 else 0
    return f"{value:.{digits}f} ms"


def duration_text(seconds: float) -> str:
    """As "45 s", "3 min", "2 h"."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def count_text(count: int, noun: str) -> str:
    """As "1 kernel", "2 kernels", "1 library", "2 libraries"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


@contextmanager
def live(line: Callable[[], str]) -> Iterator[None]:
    """On a terminal, keep the last line up to date while the block runs, and remove it afterwards."""
    if not sys.stdout.isatty():
        yield
        return
    finished = threading.Event()

    def refresh() -> None:
        while not finished.wait(_REFRESH_SECONDS):
            print(f"\r\033[K{fitted(line(), used=1)}", end="", flush=True)

    thread = threading.Thread(target=refresh, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        print("\r\033[K", end="", flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
