"""What tuning has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchard_jit.variant import Variant


@dataclass(frozen=True)
class Rejection:
    """A candidate that was dropped, and why."""

    variant: Variant
    reason: str


@dataclass(frozen=True)
class Timing:
    """How fast a kernel is in some block sizes.

    Attributes:
        variant: The kernel.
        seconds: Of one call, median of the rounds.
        fastest: Of the fastest round.
        ratio: The default's time divided by its own in the same rounds, median: above 1, it is faster.
        rounds: How often it was timed.

    """

    variant: Variant
    seconds: float
    fastest: float
    ratio: float
    rounds: int


@dataclass(frozen=True)
class Result:
    """What tuning one kernel has found.

    Attributes:
        default: The kernel in the shipped block sizes.
        timings: All candidates that were timed, the fastest first; the default is among them.
        rejected: Those that could not be compiled, or computed something else.
        untried: How many the budget did not suffice for.
        best: The sizes that are faster than the default by more than the noise; None if none are.
        entry: What the file of tuned sizes says of them.

    """

    default: Variant
    timings: tuple[Timing, ...]
    rejected: tuple[Rejection, ...]
    untried: int
    best: Timing | None
    entry: Mapping[str, Any]

    def note(self, timing: Timing) -> str:
        """What is to be said of a candidate: "best", "shipped" or nothing."""
        if self.best is not None and timing.variant == self.best.variant:
            return "best"
        return "shipped" if timing.variant == self.default else ""

    def __str__(self) -> str:
        name, before = self.default.name, sizes_text(self.default)
        if self.best is None:
            return f"{name}: none of {len(self.timings) - 1} is faster than the shipped {before}"
        after = sizes_text(self.best.variant)
        return f"{name}: {after}, {self.best.ratio:.2f} times as fast as the shipped {before}"


@dataclass(frozen=True)
class Tuning:
    """What `tune` has found.

    Attributes:
        results: One for each kernel.
        path: The file that keeps the best sizes; None if they are not kept.

    """

    results: tuple[Result, ...]
    path: Path | None

    @property
    def blocks(self) -> dict[str, dict[str, int]]:
        """The best sizes by kernel, for `specialize(**tuning.blocks)`."""
        return {
            result.default.kernel: dict((result.best.variant if result.best else result.default).blocks)
            for result in self.results
        }

    def __str__(self) -> str:
        lines = [str(result) for result in self.results]
        return "\n".join([*lines, *([f"kept in {self.path}"] if self.path else [])])


def sizes_text(variant: Variant) -> str:
    """As "k=96 q=256"."""
    return " ".join(f"{name}={size}" for name, size in variant.blocks)
