"""Which block sizes are worth a try, and which of them compute the right results."""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from orchard_jit import backends
from orchard_jit.errors import OrchardError
from orchard_jit.jit import library, recipe
from orchard_jit.jit.workers import workers
from orchard_jit.tuning.result import Rejection
from orchard_jit.variant import Variant

# Relative errors in Frobenius norms. Another order of the same sums differs by a few units of rounding in
# float32, and then by the rounding of each result to its dtype.
_TOLERANCES = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1e-2, torch.float16: 1.2e-3}
_GRIDS = {
    "cpu": {"q": (64, 128, 256, 512), "k": (32, 64, 96, 128, 192, 256)},
    "metal": {
        "rows": (8, 16, 32),
        "columns": (8, 16, 32, 64),
        "simdgroups": (2, 4, 8),
        "split": (1, 2, 4, 8),
    },
}
"""By block name, without the prefix that says of which of several kernels. What does not fit is left out."""

_ALWAYS_BUILT = 2
"""The default, and one to compare it with, whatever the budget."""


def neighbours(variant: Variant) -> Iterator[Variant]:
    """The variant in all other sizes of its backend's grid that fit, the nearest first.

    Where a variant has several kernels, which the prefixes of its blocks tell apart, each is varied while the
    others stay: their times only add up.
    """
    blocks = dict(variant.blocks)
    sizes = [
        {**blocks, **dict(zip(names, values, strict=True))}
        for names in groups(variant)
        for values in itertools.product(*(_grid(variant, name) for name in names))
    ]
    variants = {variant.with_blocks(chosen) for chosen in sizes} - {variant}
    yield from sorted(filter(_fits, variants), key=lambda other: (_distance(variant, other), other.blocks))


def groups(variant: Variant) -> list[tuple[str, ...]]:
    """The names of the blocks that tuning varies together, of each kernel of a variant."""
    by_prefix: dict[str, list[str]] = {}
    for name, _ in variant.blocks:
        prefix, _, base = name.rpartition("_")
        if base in _GRIDS[variant.backend]:
            by_prefix.setdefault(prefix, []).append(name)
    return [tuple(names) for names in by_prefix.values()]


def differing(variant: Variant, other: Variant) -> set[str]:
    """The blocks in which two variants differ."""
    return {name for name, _ in {*variant.blocks} ^ {*other.blocks}}


def built(
    variants: Sequence[Variant], deadline: float, tell: Callable[[int], None]
) -> tuple[list[Variant], list[Rejection]]:
    """Those that are compiled by the deadline, in their order, and those that can't be compiled.

    As many are compiled at a time as there are processors. The first ones are compiled however long it takes.
    Ctrl-C ends what is being compiled.
    """

    def attempt(number: int, variant: Variant) -> Rejection | bool:
        try:
            wanted = recipe.for_variant(variant)
            if number >= _ALWAYS_BUILT and time.monotonic() > deadline and library.find(wanted) is None:
                return False
            library.load(wanted)
        except (OrchardError, ValueError, OSError) as error:
            return Rejection(variant, str(error))
        return True

    outcomes: dict[int, Rejection | bool] = {}
    with workers(os.cpu_count() or 1) as crew:
        numbers = {crew.submit(attempt, *numbered): numbered[0] for numbered in enumerate(variants)}
        for future in crew.ended():
            outcomes[numbers[future]] = future.result()
            tell(sum(outcome is True for outcome in outcomes.values()))
    ready = [variant for number, variant in enumerate(variants) if outcomes[number] is True]
    return ready, [outcome for outcome in outcomes.values() if isinstance(outcome, Rejection)]


def fault(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str | None:
    """How results differ from those of the default sizes beyond rounding, or None."""
    for result, wanted in zip(actual, expected, strict=True):
        error, limit = _error(result, wanted), _TOLERANCES[wanted.dtype]
        if not error <= limit:
            return f"wrong results: off by {error:.1e} from those of the default sizes (limit {limit:.1e})"
    return None


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative, in Frobenius norms. Infinities, of rows that attend to nothing, must be in equal places."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return math.inf
    actual, expected = actual[finite], expected[finite]
    return float((actual - expected).norm() / expected.norm().clamp_min(torch.finfo(torch.float64).tiny))


def _grid(variant: Variant, name: str) -> tuple[int, ...]:
    own = dict(variant.blocks)[name]
    return tuple({own, *_GRIDS[variant.backend][name.rpartition("_")[2]]})


def _fits(variant: Variant) -> bool:
    try:
        backends.get(variant.backend).check(variant)
    except ValueError:
        return False
    return True


def _distance(variant: Variant, other: Variant) -> float:
    """In doublings and halvings."""
    return sum(
        abs(math.log2(mine / its)) for (_, mine), (_, its) in zip(variant.blocks, other.blocks, strict=True)
    )
