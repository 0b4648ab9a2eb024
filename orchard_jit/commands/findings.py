"""What the steps of `orchard-jit smoke` find, in words, tables and numbers, and what falls short."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import mean
from typing import Any

from orchard_jit.commands.console import columns, sparkline
from orchard_jit.commands.numerics import Error
from orchard_jit.commands.training import Run

LOSS_TOLERANCE = 1e-3
"""Two exact attentions differ by rounding, which every step of a training amplifies a little."""
LEAST_FALL = 1.5
"""Nats a byte that the loss must lose on the way from 5.5, which is a guess, to about 3."""

_TABLE_STEPS = 10
_LAST_STEPS = 5
_SPARKLINE_WIDTH = 30


@dataclass(frozen=True)
class Finding:
    """What a step found.

    Attributes:
        text: On the step's own line.
        table: Lines below it.
        data: The same for a program.
        fault: What falls short, if anything does.

    """

    text: str
    table: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


def of_errors(errors: Sequence[Error], text: str) -> Finding:
    """The worst error of every dtype and comparison, each with its limit."""
    groups: dict[tuple[str, str], list[Error]] = {}
    for error in errors:
        groups.setdefault((error.dtype, error.what), []).append(error)
    worst = [max(group, key=lambda error: error.error) for group in groups.values()]
    rows = [["error", *dict.fromkeys(error.what for error in worst)]]
    for dtype in dict.fromkeys(error.dtype for error in worst):
        rows.append([dtype, *(str(error) for error in worst if error.dtype == dtype)])
    share = max(error.error / error.limit for error in worst if error.limit)
    above = [f"{error.dtype} against {error.what}: {error}" for error in worst if not error.holds]
    return Finding(
        f"{text}, the worst at {share:.0%} of its limit",
        table=columns(rows),
        data={"worst": [asdict(error) for error in worst]},
        fault="; ".join(above) or None,
    )


def of_training(theirs: Run, ours: Run) -> Finding:
    """Two loss curves compared: they must be equal, and fall."""
    gaps = [abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True)]
    gap = math.inf if any(map(math.isnan, gaps)) else max(gaps)
    first, last = ours.losses[0], mean(ours.losses[-_LAST_STEPS:])
    faults = []
    if gap > LOSS_TOLERANCE:
        faults.append(f"the losses differ by {gap:.1e}, more than {LOSS_TOLERANCE:.0e}")
    if not first - last >= LEAST_FALL:
        faults.append(f"the loss went from {first:.2f} to {last:.2f}; it must fall by {LEAST_FALL}")
    return Finding(
        f"loss {first:.2f} → {last:.2f}, curves differ by {gap:.0e} (limit {LOSS_TOLERANCE:.0e})",
        table=[*_loss_table(theirs, ours), "", *_curves(theirs, ours)],
        data={
            "gap": gap,
            "tolerance": LOSS_TOLERANCE,
            "ratio": theirs.seconds / ours.seconds,
            "sdpa": asdict(theirs),
            "orchard_jit": asdict(ours),
        },
        fault="; ".join(faults) or None,
    )


def _loss_table(theirs: Run, ours: Run) -> list[str]:
    last = len(ours.losses) - 1
    steps = sorted({*range(0, last, _TABLE_STEPS), last})
    return columns(
        [
            ["step", *(f"{step:>6}" for step in steps)],
            ["SDPA", *(f"{theirs.losses[step]:.4f}" for step in steps)],
            ["orchard_jit", *(f"{ours.losses[step]:.4f}" for step in steps)],
        ]
    )


def _curves(theirs: Run, ours: Run) -> list[str]:
    low, high = min(theirs.losses + ours.losses), max(theirs.losses + ours.losses)
    bars = [sparkline(run.losses, low, high, _SPARKLINE_WIDTH) for run in (theirs, ours)]
    ratio = f"{theirs.seconds / ours.seconds:.2f}x as fast"
    return columns(
        [
            ["SDPA", bars[0], f"{theirs.seconds:.1f} s"],
            ["orchard_jit", bars[1], f"{ours.seconds:.1f} s, {ratio}"],
        ]
    )
