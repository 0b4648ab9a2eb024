"""Timing two things in turn, so that a machine that slows down slows both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Pair:
    """Seconds of one call of ours and of theirs, and theirs / ours (above 1: ours is faster)."""

    ours: float
    theirs: float
    ratio: float
    ratio_of_minima: float


def compare(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 11, least: float = 0.02
) -> Pair:
    """Call both in turn, `rounds` times, each time often enough to take `least` seconds.

    Returns:
        Median times, the median of the rounds' ratios, and the ratio of the fastest rounds.
    """
    ours(), theirs()
    repeats = max(1, int(least / max(_seconds(ours, 1), _seconds(theirs, 1), 1e-7)))
    times = [(_seconds(ours, repeats), _seconds(theirs, repeats)) for _ in range(rounds)]
    return Pair(
        ours=median(a for a, _ in times),
        theirs=median(b for _, b in times),
        ratio=median(b / a for a, b in times),
        ratio_of_minima=min(b for _, b in times) / min(a for a, _ in times),
    )


def _seconds(function: Callable[[], object], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - started) / repeats
