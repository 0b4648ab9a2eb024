"""Successive halving: all are timed in turn, the slower half drops out, the last ones meet the default."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

from orchard_jit.timing import Stopwatch, Work
from orchard_jit.variant import Variant

_HEAT_ROUNDS = 3
_FINALISTS = 3
_FINAL_ROUNDS = (5, 40)
"""At least, whatever the budget, and at most."""
_HEATS_SHARE = 0.5
"""Of the time that a race has."""
_LEAST_SECONDS = 0.005
_LEAST_GAIN = 0.02


@dataclass
class Runner:
    """A kernel in some block sizes, and its seconds by the number of the round."""

    variant: Variant
    work: Work
    times: dict[int, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Median."""
        return median(self.times.values())


@dataclass(frozen=True)
class Gain:
    """How much faster one is than the default, in rounds of the final alone: earlier ones have chosen it.

    Attributes:
        ratio: The default's time divided by its own: the median of the rounds.
        noise: How far below it the worst quarter of the rounds begins.
        ratio_of_minima: The default's fastest round divided by its own.

    """

    ratio: float
    noise: float
    ratio_of_minima: float

    @property
    def counts(self) -> bool:
        """Whether it is more than noise, and worth a line in a file."""
        least = min(self.ratio, self.ratio_of_minima) - 1
        return least > _LEAST_GAIN and self.ratio - 1 > self.noise


class Race:
    """The default against all others, on one device."""

    def __init__(self, default: Runner, others: Sequence[Runner], device: str) -> None:
        self.default = default
        self.others = list(others)
        self._stopwatch = Stopwatch(device)
        self._repeats = self._stopwatch.repeats([default.work], _LEAST_SECONDS)
        self._rounds = 0

    def heats(self, seconds: float, tell: Callable[[int], None]) -> list[Runner]:
        """Half of the others drop out after each heat. Returns the few that are left, the fastest first."""
        deadline = time.monotonic() + _HEATS_SHARE * seconds
        left = self.others
        while True:
            tell(len(left))
            for _ in range(_HEAT_ROUNDS):
                self._round(left)
            left = sorted(left, key=self.ratio, reverse=True)
            if len(left) <= _FINALISTS or time.monotonic() > deadline:
                break
            left = left[: max(_FINALISTS, len(left) // 2)]
        return left[:_FINALISTS]

    def final(self, runners: Sequence[Runner], deadline: float) -> tuple[Runner, Gain] | None:
        """The fastest of the last few, in rounds of their own, and what it gains."""
        if not runners:
            return None
        first = self._rounds
        least, most = _FINAL_ROUNDS
        while self._rounds < first + most and (self._rounds < first + least or time.monotonic() < deadline):
            self._round(runners)
        best = max(runners, key=lambda runner: median(self._ratios(runner, first)))
        ratios = self._ratios(best, first)
        minima = [
            min(runner.times[number] for number in range(first, self._rounds))
            for runner in (self.default, best)
        ]
        ratio = median(ratios)
        return best, Gain(ratio, ratio - quantiles(ratios, n=4)[0], minima[0] / minima[1])

    def ratio(self, runner: Runner) -> float:
        """The default's time divided by the runner's, in the rounds that both ran."""
        return median(self._ratios(runner))

    def _ratios(self, runner: Runner, first: int = 0) -> list[float]:
        return [self.default.times[number] / own for number, own in runner.times.items() if number >= first]

    def _round(self, runners: Sequence[Runner]) -> None:
        running = (self.default, *runners)
        works = [runner.work for runner in running]
        times = self._stopwatch.round(works, self._repeats, turned=bool(self._rounds % 2))
        for runner, seconds in zip(running, times, strict=True):
            runner.times[self._rounds] = seconds
        self._rounds += 1
