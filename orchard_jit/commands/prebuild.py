"""`orchard-jit prebuild`: kernels into the cache before anybody calls them."""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Mapping, Sequence

from orchard_jit.commands import builds, options, values, variants
from orchard_jit.commands.console import UsageError, count_text, live, mark, print_json
from orchard_jit.jit import library, roots
from orchard_jit.jit.recipe import Recipe, for_binding, for_variant
from orchard_jit.variant import DTYPES, KERNELS

DESCRIPTION = (
    "Compile the operators and every combination of the given values that is not in the cache yet. The "
    "cache folder can then be copied to machines without a compiler; name it there in "
    "ORCHARD_JIT_PREBUILT_DIRS."
)
EXAMPLE = "orchard-jit prebuild --head-dim 64,128 --dtype bfloat16,float32 --causal yes"

_CAUSAL = {"yes": (True,), "no": (False,), "both": (False, True)}


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument(
        "--head-dim",
        type=values.some(values.head_dim),
        default=[],
        metavar="D[,D]",
        help="head dim of query and key",
    )
    verb.add_argument(
        "--head-dim-v",
        type=values.some(values.head_dim),
        default=[],
        metavar="D[,D]",
        help="head dim of value (default: the same)",
    )
    verb.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        default=[],
        metavar="T[,T]",
        help=f"{', '.join(DTYPES)} (default: all)",
    )
    verb.add_argument(
        "--causal", choices=("yes", "no", "both"), default="both", help="with a causal mask (default: both)"
    )
    verb.add_argument(
        "--kernel",
        type=values.one_of(KERNELS),
        default=["forward", "backward"],
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
        help="how many to compile at a time (default: %(default)s)",
    )
    verb.add_argument("--dry-run", action="store_true", help="list, compile nothing")
    options.add_json(verb)


def run(
    *,
    head_dim: Sequence[int],
    head_dim_v: Sequence[int],
    dtype: Sequence[str],
    causal: str,
    features: Sequence[str],
    score: str,
    blocks: Mapping[str, int],
    kernel: Sequence[str],
    backend: str,
    arch: str | None,
    operators: bool,
    kernels_only: bool,
    jobs: int,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Build every combination that no store has yet. 1 if any failed."""
    if not head_dim and not operators:
        raise UsageError("say which kernels with --head-dim, or --operators for the operators alone")
    kernels = [
        for_variant(
            variants.chosen(
                backend=backend,
                arch=arch,
                kernel=one_pass,
                dtype=name,
                head_dim=dim,
                head_dim_v=dim_v,
                features=[*features, *(["causal"] if is_causal else [])],
                score=score,
                blocks=blocks,
            )
        )
        for dim, dim_v, name, is_causal, one_pass in itertools.product(
            head_dim,
            head_dim_v or (None,),
            dtype or variants.dtypes(backend),
            _CAUSAL["no" if "window" in features else causal],  # a window has a right bound of its own
            kernel,
        )
    ]
    wanted = kernels if kernels_only else [for_binding(), *kernels]  # the slowest first
    recipes = list({recipe.key: recipe for recipe in wanted}.values())
    return _list(recipes, as_json) if dry_run else _build(recipes, jobs, as_json)


def _list(recipes: Sequence[Recipe], as_json: bool) -> int:
    cached = {recipe.key for recipe in recipes if library.find(recipe)}
    if as_json:
        print_json(
            [{"key": recipe.key, "title": recipe.title, "cached": recipe.key in cached} for recipe in recipes]
        )
        return 0
    for recipe in recipes:
        print(f"{'cached  ' if recipe.key in cached else 'to build'}  {recipe.title}")
    print(
        f"{count_text(len(recipes), 'library')}: {len(cached)} cached, {len(recipes) - len(cached)} to build"
    )
    return 0


def _build(recipes: Sequence[Recipe], jobs: int, as_json: bool) -> int:
    if not all(library.find(recipe) for recipe in recipes):
        builds.require_lasting_cache()
    started = time.monotonic()
    outcomes: list[builds.Outcome] = []

    def state() -> str:
        return f"… {len(outcomes)} of {len(recipes)} done, {time.monotonic() - started:.0f} s"

    ready = builds.build_all(recipes, jobs)
    with builds.quiet_progress():
        while True:
            with live(state):
                outcome = next(ready, None)
            if outcome is None:
                break
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


def _print(outcome: builds.Outcome) -> None:
    took = f"  {outcome.seconds:.1f} s" if outcome.state != "cached" else ""
    print(
        f"{mark('failed' if outcome.error else 'ok')} {outcome.state:6}  {outcome.recipe.title}{took}",
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
