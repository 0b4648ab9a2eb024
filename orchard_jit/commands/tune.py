"""`orchard-jit tune`: the fastest block sizes on this machine, as a table of all that were tried."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from orchard_jit.commands import builds, options, plots, values
from orchard_jit.commands.console import (
    UsageError,
    columns,
    count_text,
    duration_text,
    mark,
    milliseconds,
    print_json,
    wrapped,
)
from orchard_jit.commands.machine import require_device
from orchard_jit.jit import progress
from orchard_jit.tuning import PASSES, tune
from orchard_jit.tuning.result import Rejection, Result, Timing, Tuning, sizes_text
from orchard_jit.variant import DTYPES

DESCRIPTION = (
    "Compile the kernels of a call in other block sizes, check their results, time them in turn, and keep "
    "the best for this model of processor or GPU, if it gains more than the noise."
)
EXAMPLE = "orchard-jit tune --shape 1,8,1024,1024,64 --dtype float32 --causal --budget 60s"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument(
        "--shape",
        type=values.shape,
        required=True,
        metavar="B,H,Sq,Sk,D",
        help="batch, heads, queries, keys, head dim",
    )
    verb.add_argument("--dtype", choices=DTYPES, default="float32", metavar="T", help="(default: float32)")
    verb.add_argument("--kv-heads", type=values.positive, metavar="H", help="(default: as many as heads)")
    verb.add_argument("--causal", action="store_true", help="with a causal mask")
    verb.add_argument("--device", choices=("cpu", "mps"), default="cpu", help="where to run (default: cpu)")
    verb.add_argument(
        "--kernel",
        type=values.one_of(PASSES),
        default=list(PASSES),
        metavar="K[,K]",
        help=f"{', '.join(PASSES)} (default: both)",
    )
    verb.add_argument(
        "--budget", type=values.seconds, default=60.0, metavar="TIME", help="for everything (default: 60s)"
    )
    verb.add_argument("--dry-run", action="store_true", help="keep nothing")
    verb.add_argument("--plot", type=Path, metavar="FILE", help="draw the times; needs matplotlib")
    options.add_json(verb)


def run(
    *,
    shape: Sequence[int],
    kv_heads: int | None,
    dtype: str,
    causal: bool,
    device: str,
    kernel: Sequence[str],
    budget: float,
    dry_run: bool,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Tune the kernels of one call, on random tensors."""
    require_device(device)
    if plot is not None:
        plots.require_matplotlib()
    query, key, value = _inputs(shape, kv_heads, dtype, device)
    try:
        progress.say(f"tuning for {duration_text(budget)}")
        with nullcontext() if sys.stderr.isatty() else builds.quiet_progress():  # a terminal has a bar
            tuning = tune(
                query,
                key,
                value,
                causal="upper_left" if causal else False,
                budget=budget,
                passes=kernel,
                keep=not dry_run,
            )
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None
    if plot is not None:
        plots.of_tuning(tuning, plot)
    if as_json:
        print_json(_described(tuning))
    else:
        _print(tuning, plot)
    return 0


def _inputs(
    shape: Sequence[int], kv_heads: int | None, dtype: str, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, heads, query_length, key_length, head_dim = shape
    if kv_heads is not None and heads % kv_heads:
        raise UsageError(f"--kv-heads must divide the {heads} heads of --shape, got {kv_heads}")
    generator = torch.Generator().manual_seed(0)
    query_shape = (batch, heads, query_length, head_dim)
    key_shape = (batch, kv_heads or heads, key_length, head_dim)
    query, key, value = (
        torch.randn(sizes, generator=generator).to(device, getattr(torch, dtype))
        for sizes in (query_shape, key_shape, key_shape)
    )
    return query, key, value


def _print(tuning: Tuning, plot: Path | None) -> None:
    for result in tuning.results:
        print(f"{result.default.name}\n")
        for line in _table(result):
            print(f"  {line}".rstrip())
        for rejection in result.rejected:
            print(f"{mark('failed')} {sizes_text(rejection.variant)}: {rejection.reason.splitlines()[0]}")
        print(f"\n{mark('ok')} {_verdict(result)}\n")
    if tuning.path is None:
        print("nothing written")
    elif any(result.best for result in tuning.results):
        print(f"kept in {tuning.path}")
    if plot is not None:
        print(f"drawn in {plot}")


def _table(result: Result) -> list[str]:
    names = [name for name, _ in result.default.blocks]
    rows = [[*names, "median", "fastest", "ratio", "rounds", ""]]
    for timing in result.timings:
        rows.append([*_cells(timing), result.note(timing)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return columns(
        [
            [cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)] + row[-1:]
            for row in rows
        ]
    )


def _cells(timing: Timing) -> list[str]:
    sizes = [str(size) for _, size in timing.variant.blocks]
    times = [milliseconds(timing.seconds), milliseconds(timing.fastest)]
    return [*sizes, *times, f"{timing.ratio:.3f}", str(timing.rounds)]


def _verdict(result: Result) -> str:
    tried = count_text(len(result.timings) - 1, "candidate")
    rest = f", {result.untried} left untried by the budget" if result.untried else ""
    if result.best is None:
        text = f"the shipped sizes stay: none of {tried} gains more than the noise{rest}"
    else:
        gain = f"{result.best.ratio:.2f} times as fast as the shipped {sizes_text(result.default)}"
        text = f"{sizes_text(result.best.variant)}: {gain}, the best of {tried}{rest}"
    return "\n  ".join(wrapped(text, indent=2))


def _described(tuning: Tuning) -> dict[str, object]:
    return {
        "path": None if tuning.path is None else str(tuning.path),
        "kernels": [
            {
                "kernel": result.default.name,
                "shipped": dict(result.default.blocks),
                "best": None if result.best is None else _timing(result.best),
                "candidates": [_timing(timing) for timing in result.timings],
                "rejected": [_rejection(rejection) for rejection in result.rejected],
                "untried": result.untried,
            }
            for result in tuning.results
        ],
    }


def _timing(timing: Timing) -> dict[str, object]:
    values = {name: value for name, value in asdict(timing).items() if name != "variant"}
    return {"blocks": dict(timing.variant.blocks), **values}


def _rejection(rejection: Rejection) -> dict[str, object]:
    return {"blocks": dict(rejection.variant.blocks), "reason": rejection.reason}
