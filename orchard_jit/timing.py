"""Timing several things in turn, so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

Work = Callable[[], object]

_LEAST_SECONDS = 0.02
"""Of one timing: shorter ones are repeated until they take as long."""


@dataclass(frozen=True)
class Pair:
    """Seconds of one call of ours and of theirs, and theirs / ours (above 1: ours is faster).

    Attributes:
        ours, theirs: Median times.
        fastest: Our time in our fastest round, which is what a share of the peak is taken of.
        ratio: The median of the rounds' ratios.
        ratio_of_minima: The ratio of the fastest rounds.

    """

    ours: float
    theirs: float
    fastest: float
    ratio: float
    ratio_of_minima: float


def compare(
    ours: Work, theirs: Work, rounds: int = 11, least: float = _LEAST_SECONDS, device: str = "cpu"
) -> Pair:
    """Call both in turn, `rounds` times, each time often enough to take `least` seconds."""
    stopwatch = Stopwatch(device)
    repeats = stopwatch.repeats((ours, theirs), least)
    times = [stopwatch.round((ours, theirs), repeats, turned=bool(number % 2)) for number in range(rounds)]
    return Pair(
        ours=median(a for a, _ in times),
        theirs=median(b for _, b in times),
        fastest=min(a for a, _ in times),
        ratio=median(b / a for a, b in times),
        ratio_of_minima=min(b for _, b in times) / min(a for a, _ in times),
    )


class Stopwatch:
    """Seconds of work on a device, all of it: what is queued on a GPU is waited for."""

    def __init__(self, device: str) -> None:
        self._wait: Work = torch.mps.synchronize if device == "mps" else lambda: None

    def seconds(self, work: Work, repeats: int = 1) -> float:
        """Of one call, when it is called so often."""
        self._wait()
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        self._wait()
        return (time.perf_counter() - started) / repeats

    def repeats(self, works: Sequence[Work], least: float) -> int:
        """How often to call, so that the slowest takes at least so many seconds. Calls each twice."""
        for work in works:
            self.seconds(work)
        return max(1, int(least / max(1e-7, *(self.seconds(work) for work in works))))

    def round(self, works: Sequence[Work], repeats: int, *, turned: bool) -> list[float]:
        """The seconds of each, called one after the other, or the other way round: none is always first."""
        order = -1 if turned else 1
        return [self.seconds(work, repeats) for work in works[::order]][::order]
