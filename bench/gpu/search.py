"""Block sizes ranked by what they ask of a GPU, where no Mac is at hand to race them with `tune`.

    python bench/gpu/search.py --kernel forward --dtype float16 --head-dim 64
    python bench/gpu/search.py --kernel backward --head-dim 128 --nearest 40 --write blocks.json
    ORCHARD_JIT_BLOCKS=blocks.json pytest tests/test_metal_checked.py     # nothing here looks at results
    python bench/gpu/search.py --check                                    # the model against what was timed

The candidates are those of `tune`. The software Mac counts what each asks for (`tests/metal_traffic.py`), and
ptxas, where there is one, what it spills; a weighted sum of these is its cost. What it writes is a file as
ORCHARD_JIT_BLOCKS and ORCHARD_JIT_TUNED name one.

It is a guide to what is worth a race, and no replacement. `--check` finds a rank correlation of 0.5 with the
18 times that are known, none of Apple hardware: of 11 choices that take longer, 8 cost more. It says too
little of reading everything twice (1.0 to 1.2, where it takes 1.15 to 1.3 times as long) and too much of
spills, which an H200 hides. To it, 8 simdgroups are as good as 4 in a threadgroup; of equal ones,
the smaller is first.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import correlation

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

import torch
from metal_kernels import only, select, source_of
from metal_traffic import OPERATIONS, SQUARE, measure
from software_mac.metal.ptx import REGISTERS, resources, to_ptx

from orchard_jit.backends.metal import groupings
from orchard_jit.blocks.table import Table
from orchard_jit.tuning.candidates import differing, groups, neighbours
from orchard_jit.tuning.result import Rejection
from orchard_jit.variant import Variant

WEIGHTS = {
    "matrix products": 16.0,  # 512 multiplications and additions, 32 a cycle
    "exp2": 4.0,  # the special functions have a quarter of that rate
    "shuffles": 1.0,  # one instruction each
    "sectors": 2.0,  # 64 bytes a cycle from the caches of a core, which four schedulers share
    "spilt sectors": 2.0,  # as those: registers are spilt to device memory
    "threadgroup bytes": 4 / 128,  # 32 banks of 4 bytes a cycle and core
    "bank conflicts": 4.0,  # a turn more
    "waits": 32.0,  # a simdgroup at a barrier: the way to threadgroup memory and back
}
"""Cycles of a scheduler, of which a core has four. Rates are assumed: Apple documents none of them.
None was fitted to a time. Nothing is taken to overlap, so the sum is no time, but an order."""

REGISTERS_A_THREAD = 128  # with more of them, fewer threads fit into a core
LEAST_GAIN = 0.02  # below it, the shipped sizes stay
HALF_A_CORE = 16 * 1024  # bytes of threadgroup memory, so that a core runs two threadgroups
KERNELS = {"": ("forward", "decode"), "dq_": ("grad_query",), "dkv_": ("grad_key_value",)}
"""Those whose blocks have this prefix."""

TIMED = (
    ("forward", "float16", 64, {"columns": 32}, 1.0),
    ("forward", "float16", 96, {"split": 1}, 1.11),
    ("forward", "float16", 256, {"simdgroups": 8}, 1.4),
    ("forward", "float32", 64, {"columns": 32}, 0.92),
    ("forward", "float32", 96, {"rows": 8, "split": 1}, 1.15),
    ("grad_query", "float16", 64, {"dq_split": 1}, 1.0),
    ("grad_query", "float16", 128, {"dq_split": 4}, 1.07),
    ("grad_query", "float16", 256, {"dq_split": 8, "dq_simdgroups": 8}, 1.45),
    ("grad_query", "float32", 64, {"dq_rows": 8, "dq_split": 1}, 1.3),
    ("grad_query", "float32", 128, {"dq_rows": 8, "dq_split": 2}, 1.3),
    ("grad_query", "float32", 256, {"dq_columns": 16}, 0.93),
    ("grad_key_value", "float16", 64, {"dkv_rows": 8, "dkv_split": 1}, 1.15),
    ("grad_key_value", "float16", 256, {"dkv_split": 8, "dkv_simdgroups": 8}, 1.45),
    ("grad_key_value", "float32", 64, {"dkv_rows": 8, "dkv_split": 1}, 1.3),
    ("grad_key_value", "float32", 96, {"dkv_split": 2}, 1.0),
    ("grad_key_value", "float32", 128, {"dkv_rows": 8, "dkv_split": 2}, 1.3),
    ("grad_key_value", "float32", 256, {"dkv_columns": 8}, 1.02),
    ("grad_key_value", "float16", 80, {"dkv_columns": 16}, 0.93),
)
"""How many times as long these blocks take as the shipped ones, on an H200 in the translation to PTX, by the
reasons in `metal.json`: the middle of a range. A block that a reason leaves unsaid is the shipped one."""


@dataclass(frozen=True)
class Candidate:
    """One kernel of a variant, and what it asks for in 1000 useful operations."""

    variant: Variant
    kernel: str
    counts: Mapping[str, float]

    def cost(self, weights: Mapping[str, float] = WEIGHTS) -> float:
        return sum(weight * self.counts.get(name, 0.0) for name, weight in weights.items())

    @property
    def simdgroups(self) -> int:
        return groupings(self.variant)[self.kernel].simdgroups


def examine(variant: Variant, kernel: str) -> Candidate | Rejection:
    """The counts of one kernel, unless two threadgroups don't fit into a core."""
    grouping = groupings(variant)[kernel]
    if grouping.threadgroup_bytes > HALF_A_CORE:
        reason = f"two threadgroups of {grouping.threadgroup_bytes} bytes don't fit into a core"
        return Rejection(variant, reason)
    if kernel in ("forward", "grad_query") and grouping.finished > SQUARE.query_length:
        return Rejection(variant, f"a threadgroup has {grouping.finished} rows, more than are counted")
    with in_force(variant):
        counts = measure(variant.kernel, getattr(torch, variant.dtype), variant.head_dim)[kernel]
    waits = counts["barriers"] * grouping.simdgroups
    return Candidate(variant, kernel, {**counts, "waits": waits, **spilt(variant, kernel)})


@contextmanager
def in_force(variant: Variant) -> Iterator[None]:
    """The block sizes of a variant for whatever is selected meanwhile in this process."""
    before = os.environ.get("ORCHARD_JIT_BLOCKS")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blocks.json"
        Table([{"kernel": variant.kernel, "blocks": dict(variant.blocks)}]).write(path)
        os.environ["ORCHARD_JIT_BLOCKS"] = str(path)
        try:
            yield
        finally:
            del os.environ["ORCHARD_JIT_BLOCKS"]
            if before is not None:
                os.environ["ORCHARD_JIT_BLOCKS"] = before


def spilt(variant: Variant, kernel: str) -> dict[str, float]:
    """Sectors that spills move, if each is stored and loaded once a block of columns; nothing without ptxas.

    A byte of all 32 lanes is one sector.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"{variant.kernel}.metal"
        source.write_text(only("wide", source_of(variant)))
        taken = resources(to_ptx(source, REGISTERS), registers=REGISTERS_A_THREAD)
    if taken is None:
        return {}
    used, grouping = taken[f"{kernel}_wide"], groupings(variant)[kernel]
    useful = OPERATIONS[kernel] * grouping.rows * grouping.columns * variant.head_dim / grouping.split / 1000
    return {"spilt sectors": (used.spill_store_bytes + used.spill_load_bytes) / useful}


def ranked(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The least cost first; of equal ones, to a percent or so, the smaller threadgroup: more of them run."""
    return sorted(candidates, key=lambda each: (round(each.cost(), 1), each.simdgroups, each.cost()))


def best(found: Sequence[Candidate], default: Variant) -> Candidate:
    """The first one, or the shipped one where that asks for hardly more."""
    shipped = next(each for each in found if each.variant == default)
    return found[0] if found[0].cost() < (1 - LEAST_GAIN) * shipped.cost() else shipped


def steadiness(found: Sequence[Candidate]) -> str:
    """Whether the first place hangs on a weight."""
    changed = [{**WEIGHTS, name: WEIGHTS[name] * factor} for name in WEIGHTS for factor in (0.5, 2)]
    near = sum(found[0].cost(w) <= (1 + LEAST_GAIN) * min(each.cost(w) for each in found) for w in changed)
    return (
        f"One weight halved or doubled: the first is still (nearly) the best {near} times of {len(changed)}."
    )


def kernel_of(variant: Variant, names: Sequence[str]) -> str:
    """The kernel whose blocks these are."""
    prefix = names[0][: names[0].rfind("_") + 1]
    return next(kernel for kernel in KERNELS[prefix] if kernel in groupings(variant))


def search(default: Variant, names: Sequence[str], nearest: int, jobs: int) -> list[Candidate]:
    """Counts and ranks the sizes of one kernel, those nearest to the default ones; prints a table."""
    kernel = kernel_of(default, names)
    others = [other for other in neighbours(default) if differing(default, other) <= {*names}]
    with ProcessPoolExecutor(jobs) as pool:
        examined = list(pool.map(partial(examine, kernel=kernel), [default, *others[:nearest]]))
    found = ranked(each for each in examined if isinstance(each, Candidate))
    refused = [each for each in examined if isinstance(each, Rejection)]
    print(f"\n{kernel}, {default.dtype}, head dim {default.head_dim}: ", end="")
    print(f"{len(found)} counted, {len(refused)} refused, {len(others[nearest:])} untried\n")
    report(found, default, names)
    print(f"\n{steadiness(found)}")
    for rejection in refused:
        print(f"Refused: {sizes_text(rejection.variant, names)}: {rejection.reason}")
    return found


def report(found: Sequence[Candidate], default: Variant, names: Sequence[str], shown: int = 8) -> None:
    """The first few and the shipped one, as a Markdown table."""
    columns = ("device bytes", *WEIGHTS)
    print("| place |", " | ".join((*names, *columns)), "| cost |")
    print("|---" * (len(names) + len(columns) + 2) + "|")
    for place, each in enumerate(found, 1):
        if place <= shown or each.variant == default:
            label = f"{place}, shipped" if each.variant == default else f"{place}"
            sizes = (str(dict(each.variant.blocks)[name]) for name in names)
            counts = (f"{each.counts[name]:.3g}" if name in each.counts else "-" for name in columns)
            print(f"| {label} |", " | ".join((*sizes, *counts)), f"| {each.cost():.1f} |")


def sizes_text(variant: Variant, names: Sequence[str]) -> str:
    return " ".join(f"{name}={size}" for name, size in variant.blocks if name in names)


def entry(default: Variant, found: Sequence[Sequence[Candidate]]) -> dict[str, object]:
    """The best sizes of all kernels of a variant, for a file of block sizes."""
    blocks = dict(default.blocks)
    for candidates, names in zip(found, groups(default), strict=True):
        chosen = dict(best(candidates, default).variant.blocks)
        blocks |= {name: chosen[name] for name in names}
    return {
        "backend": default.backend,
        "kernel": default.kernel,
        "dtype": default.dtype,
        "head_dim": [default.head_dim, default.head_dim],
        "blocks": blocks,
        "reason": f"by counts, of {sum(map(len, found))} candidates (bench/gpu/search.py); not timed",
    }


def compare(timed: tuple[str, str, int, Mapping[str, int], float]) -> tuple[float, float]:
    """The cost and the time of some blocks, each relative to that of the shipped ones."""
    kernel, dtype, head_dim, blocks, time = timed
    name = "forward" if kernel == "forward" else "backward"
    default = select(name, getattr(torch, dtype), head_dim, features=())
    other, shipped = (
        examine(variant, kernel)
        for variant in (default.with_blocks({**dict(default.blocks), **blocks}), default)
    )
    if isinstance(other, Rejection) or isinstance(shipped, Rejection):
        raise ValueError(f"what was timed is refused now: {other}, {shipped}")
    return other.cost() / shipped.cost(), time


def check(jobs: int) -> None:
    """Prints costs beside times, and their rank correlation (Spearman's)."""
    with ProcessPoolExecutor(jobs) as pool:
        pairs = list(pool.map(compare, TIMED))
    print("| kernel | in place of the shipped blocks | cost | time |")
    print("|---|---|---|---|")
    for (kernel, dtype, head_dim, blocks, _), (cost, time) in zip(TIMED, pairs, strict=True):
        changed = " ".join(f"{name}={size}" for name, size in blocks.items())
        print(f"| {kernel} {dtype} {head_dim} | {changed} | {cost:.2f} | {time:.2f} |")
    costs, times = ([round(number, 2) for number in column] for column in zip(*pairs, strict=True))
    print(f"\nRank correlation: {correlation(ranks(costs), ranks(times)):.2f}, of {len(pairs)}")


def ranks(numbers: Sequence[float]) -> list[float]:
    """From 1; equal ones have the mean of theirs."""
    ordered = sorted(numbers)
    return [ordered.index(number) + (ordered.count(number) + 1) / 2 for number in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", default="forward", choices=("forward", "backward", "decode"))
    parser.add_argument("--dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument(
        "--nearest", type=int, default=1000, help="candidates of each kernel, beside the default"
    )
    parser.add_argument("--write", type=Path, help="the file of block sizes that gets the best, first")
    parser.add_argument("--check", action="store_true", help="compare costs with times instead")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()

    if options.check:
        return check(options.jobs)
    default = select(options.kernel, getattr(torch, options.dtype), options.head_dim, features=())
    found = [search(default, names, options.nearest, options.jobs) for names in groups(default)]
    if options.write:
        table = Table.read(options.write) if options.write.exists() else Table()
        table.with_first(entry(default, found)).write(options.write)
    return None


if __name__ == "__main__":
    main()
