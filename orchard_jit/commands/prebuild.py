"""`orchard-jit prebuild`: kernels into the cache before anybody calls them."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchard_jit.commands import builds, kernels, options, values
from orchard_jit.commands.console import (
    UsageError,
    bar,
    count_text,
    duration_text,
    live,
    mark,
    print_json,
)
from orchard_jit.commands.variants import Grid
from orchard_jit.jit import library, roots
from orchard_jit.jit.entry import Entry
from orchard_jit.jit.recipe import Recipe, for_binding, for_variant
from orchard_jit.variant import DTYPES, KERNELS, Variant

DESCRIPTION = (
    "Compile the operators and every combination of the given values, or of those in a file, that is not in "
    "the cache yet. What is compiled when it is interrupted is kept. `orchard-jit export` and `orchard-jit "
    "wheel` bring it to machines without a compiler."
)
EXAMPLE = "orchard-jit prebuild --head-dim 64,128 --dtype bfloat16,float32 --causal yes"

Entries = Mapping[str, Entry | None]
"""By key, what is compiled already."""

_CAUSAL = {"yes": (True,), "no": (False,), "both": (False, True)}


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the kernels of this file, as `orchard-jit record` writes it (*.toml), or of an "
        "ORCHARD_JIT_RECORD (*.jsonl)",
    )
    verb.add_argument(
        "--head-dim",
        type=values.some(values.head_dim),
        metavar="D[,D]",
        help="head dim of query and key",
    )
    verb.add_argument(
        "--head-dim-v",
        type=values.some(values.head_dim),
        metavar="D[,D]",
        help="head dim of value (default: the same)",
    )
    verb.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        metavar="T[,T]",
        help=f"{', '.join(DTYPES)} (default: all)",
    )
    verb.add_argument("--causal", choices=("yes", "no", "both"), help="with a causal mask (default: both)")
    verb.add_argument(
        "--kernel",
        type=values.one_of(KERNELS),
        metavar="K[,K]",
        help=f"{', '.join(KERNELS)} (default: forward and backward)",
    )
    options.add_features(verb)
    options.add_target(verb)
    which = verb.add_mutually_exclusive_group()
    which.add_argument(
        "--operators", action="store_true", help="the operators, and nothing else without --head-dim"
    )
    which.add_argument("--kernels-only", action="store_true", help="leave the operators out")
    verb.add_argument(
        "--jobs",
        type=values.positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="how many to compile at a time, if there is memory for them (default: %(default)s)",
    )
    verb.add_argument("--dry-run", action="store_true", help="list, compile nothing")
    options.add_json(verb)


def run(
    *,
    file: Path | None,
    operators: bool,
    kernels_only: bool,
    jobs: int,
    dry_run: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Build every wanted kernel that no store has yet. 1 if any failed."""
    wanted = [for_variant(variant) for variant in _variants(file, given)]
    if not (wanted or operators or file):
        raise UsageError(
            "say which kernels with --head-dim or a FILE, or --operators for the operators alone"
        )
    if not kernels_only:
        wanted.insert(0, for_binding())  # the slowest first
    recipes = list({recipe.key: recipe for recipe in wanted}.values())
    entries = {recipe.key: library.find(recipe) for recipe in recipes}
    return _list(recipes, entries, as_json) if dry_run else _build(recipes, entries, jobs, as_json)


def _variants(file: Path | None, given: Mapping[str, Any]) -> Iterable[Variant]:
    """Those of the file, or of the options."""
    grid = {name: value for name, value in given.items() if value and (name, value) != ("backend", "cpu")}
    if file is None:
        if not given["head_dim"]:
            return ()
        causal = {"causal": _CAUSAL[grid["causal"]]} if "causal" in grid else {}
        return Grid(**{**grid, **causal}).variants()
    if grid:
        options_given = ", ".join(f"--{name.replace('_', '-')}" for name in grid)
        raise UsageError(f"{file} says which kernels; leave out {options_given}")
    return kernels.variants(file)


def _list(recipes: Sequence[Recipe], entries: Entries, as_json: bool) -> int:
    if as_json:
        print_json(
            [
                {"key": each.key, "title": each.title, "cached": entries[each.key] is not None}
                for each in recipes
            ]
        )
        return 0
    for recipe in recipes:
        print(f"{'cached  ' if entries[recipe.key] else 'to build'}  {recipe.title}")
    missing = sum(entry is None for entry in entries.values())
    print(f"{count_text(len(recipes), 'library')}: {len(recipes) - missing} cached, {missing} to build")
    return 0


def _build(recipes: Sequence[Recipe], entries: Entries, jobs: int, as_json: bool) -> int:
    started = time.monotonic()
    missing = [recipe for recipe in recipes if entries[recipe.key] is None]
    outcomes = [
        builds.Outcome(recipe, "cached", 0.0, str(entry.directory))
        for recipe in recipes
        if (entry := entries[recipe.key])
    ]
    if missing:
        builds.require_lasting_cache()
        for outcome in _watched(missing, jobs):
            outcomes.append(outcome)
            if not as_json:
                _print(outcome)
    failed = [outcome for outcome in outcomes if outcome.error]
    seconds = time.monotonic() - started
    if as_json:
        print_json({"seconds": round(seconds, 3), "libraries": [_described(outcome) for outcome in outcomes]})
    else:
        _print_summary(outcomes, failed, seconds)
    return 1 if failed else 0


def _watched(recipes: Sequence[Recipe], jobs: int) -> Iterator[builds.Outcome]:
    """Outcomes as they come; on a terminal, with a bar below them."""
    estimate = builds.Estimate(recipes, jobs)

    def line() -> str:
        left = duration_text(estimate.seconds_left())
        return f"{bar(estimate.done / len(recipes))}  {estimate.done} of {len(recipes)}, about {left} left"

    ready = builds.build_all(recipes, jobs)
    with builds.quiet_progress():
        while estimate.done < len(recipes):
            with live(line):
                outcome = next(ready)
            estimate.add(outcome)
            yield outcome


def _print(outcome: builds.Outcome) -> None:
    print(
        f"{mark('failed' if outcome.error else 'ok')} {outcome.state:6}  {outcome.recipe.title}"
        f"  {outcome.seconds:.1f} s",
        flush=True,
    )


def _print_summary(
    outcomes: Sequence[builds.Outcome], failed: Sequence[builds.Outcome], seconds: float
) -> None:
    counts = ", ".join(
        f"{number} {state}"
        for state in ("built", "cached", "failed")
        if (number := sum(outcome.state == state for outcome in outcomes))
    )
    print(f"{count_text(len(outcomes), 'library')}: {counts}, in {seconds:.1f} s, cache {roots.cache_root()}")
    for outcome in failed:
        print(f"\n{mark('failed')} {outcome.recipe.title}\n{outcome.error}")


def _described(outcome: builds.Outcome) -> dict[str, object]:
    return {
        "key": outcome.recipe.key,
        "title": outcome.recipe.title,
        "state": outcome.state,
        "seconds": round(outcome.seconds, 3),
        "directory": outcome.directory,
        "error": outcome.error,
    }
