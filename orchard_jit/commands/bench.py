"""`orchard-jit bench`: forward and backward against PyTorch's own attention, over a grid of calls.

A ratio is PyTorch's time divided by ours: above 1, ours is faster. Both are called in turn in one process and
allocate their outputs. "ratio" is the median of the rounds' ratios, "best" compares the fastest rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from orchard_jit.commands import clones, plots, values
from orchard_jit.commands.builds import quiet_progress
from orchard_jit.commands.calls import MASKS, PASSES, Call
from orchard_jit.commands.console import UsageError, live, mark, milliseconds, print_json
from orchard_jit.commands.machine import facts, require_device
from orchard_jit.commands.peak import Peak, measure
from orchard_jit.errors import OrchardError
from orchard_jit.timing import Pair
from orchard_jit.variant import DTYPES

DESCRIPTION = (
    "Forward and backward over a grid of calls, ours and PyTorch's in turn, with their ratio and our "
    "share of the peak, which is measured too. On mps also against the CPU, and against the mode that "
    "clones tensors."
)
EXAMPLE = "orchard-jit bench --head-dim 64 --length 512,2048 --dtype float32"

_CAUSAL = {"yes": (True,), "no": (False,), "both": (False, True)}
_HEADINGS = f"{'dtype':8} {'D':>3} {'length':>6}  {'mask':6} {'threads':>7}  {'pass':8}"
_TIMES = f"{'ours':>10} {'PyTorch':>10} {'ratio':>6} {'best':>6} {'peak':>5}"
_MPS_TIMES = f" {'CPU':>6} {'clone':>7}"
_LEGEND = """
ratio, best  PyTorch's time divided by ours: median of the rounds, fastest rounds
peak         our fastest round's share of what the machine can compute, counting visible keys"""
_MPS_LEGEND = """
CPU          PyTorch's time on the CPU divided by ours; Orchard's README promises 3 to 5, backward 2 to 3
clone        time that ORCHARD_STORAGE=clone adds; Orchard's README promises 0.5 to 1 %"""


@dataclass(frozen=True)
class Measurement:
    """One pass of one call.

    Attributes:
        pair: Ours and PyTorch's on the same device.
        share: Of the measured peak; None where that could not be measured.
        cpu: Ours and PyTorch's on the CPU; on mps.
        clone: The share of time that cloning private tensors adds; on mps.

    """

    pair: Pair
    share: float | None
    cpu: Pair | None
    clone: float | None


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("--device", choices=("cpu", "mps"), default="cpu", help="where to run (default: cpu)")
    verb.add_argument(
        "--head-dim",
        type=values.some(values.head_dim),
        default=[32, 64, 128],
        metavar="D[,D]",
        help="(default: 32,64,128)",
    )
    verb.add_argument(
        "--length",
        type=values.some(values.positive),
        default=[128, 512, 2048],
        metavar="S[,S]",
        help="of queries and keys (default: 128,512,2048)",
    )
    verb.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        default=["float32", "bfloat16", "float16"],
        metavar="T[,T]",
        help=f"{', '.join(DTYPES)} (default: all but float64)",
    )
    verb.add_argument("--causal", choices=("yes", "no", "both"), default="both", help="(default: both)")
    verb.add_argument(
        "--mask",
        type=values.one_of(MASKS),
        default=["none"],
        metavar="M[,M]",
        help=f"{', '.join(MASKS)} (default: none)",
    )
    verb.add_argument("--batch", type=values.positive, default=1, metavar="B", help="(default: 1)")
    verb.add_argument("--heads", type=values.positive, default=8, metavar="H", help="(default: 8)")
    verb.add_argument("--kv-heads", type=values.positive, metavar="H", help="(default: as many as heads)")
    verb.add_argument(
        "--threads",
        type=values.some(values.positive),
        metavar="N[,N]",
        help="of the CPU (default: as many as PyTorch takes)",
    )
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--forward", action="store_true", help="the forward alone")
    which.add_argument("--backward", action="store_true", help="the backward alone")
    verb.add_argument(
        "--rounds",
        type=values.positive,
        default=7,
        metavar="N",
        help="timings of each (default: %(default)s)",
    )
    verb.add_argument("--plot", type=Path, metavar="FILE", help="draw the ratios; needs matplotlib")
    verb.add_argument(
        "--json", type=Path, metavar="FILE", dest="json_file", help="also write JSON; - prints it alone"
    )


def run(
    *,
    device: str,
    head_dim: Sequence[int],
    length: Sequence[int],
    dtype: Sequence[str],
    causal: str,
    mask: Sequence[str],
    batch: int,
    heads: int,
    kv_heads: int | None,
    threads: Sequence[int] | None,
    forward: bool,
    backward: bool,
    rounds: int,
    plot: Path | None,
    json_file: Path | None,
) -> int:
    """Measure every combination, and print each as it is done."""
    require_device(device)
    if plot is not None:
        plots.require_matplotlib()
    if heads % (kv_heads or heads):
        raise UsageError(f"--kv-heads must divide the {heads} heads, got {kv_heads}")
    calls = [
        Call(device, name, batch, heads, kv_heads or heads, size, dim, is_causal, kind, count)
        for count, name, dim, size, is_causal, kind in itertools.product(
            threads or [torch.get_num_threads()], dtype, head_dim, length, _CAUSAL[causal], mask
        )
        if not (is_causal and kind != "none")
    ]
    if not calls:
        raise UsageError("PyTorch takes a mask or a causal one, not both: say --causal no")
    passes = ("forward",) if forward else ("backward",) if backward else PASSES
    bench = Bench(calls, passes, rounds, silent=json_file == Path("-"))
    rows = bench.rows()
    peaks = [{"dtype": kind[0], "threads": kind[1], **asdict(peak)} for kind, peak in bench.peaks.items()]
    report = {"machine": facts(), "peaks": peaks, "rows": rows}
    if json_file == Path("-"):
        print_json(report)
    elif json_file is not None:
        json_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        plots.of_bench(rows, f"{_title(calls[0])}, {facts()['processor']}", plot)
    return 0


class Bench:
    """Measures calls and prints a line for each of their passes."""

    def __init__(self, calls: Sequence[Call], passes: Sequence[str], rounds: int, *, silent: bool) -> None:
        self.peaks: dict[tuple[str, int], Peak] = {}
        self._calls, self._passes, self._rounds, self._silent = calls, passes, rounds, silent
        self._on_mps = calls[0].device == "mps"

    def rows(self) -> list[dict[str, Any]]:
        """Everything measured, for a program."""
        self._say(f"orchard_jit on {_title(self._calls[0])}, {facts()['processor']}\n")
        self._measure_peaks()
        self._say(f"\n{_HEADINGS}{_TIMES}{_MPS_TIMES if self._on_mps else ''}")
        cloned = self._cloned()
        rows = []
        for number, call in enumerate(self._calls):
            row: dict[str, Any] = asdict(call)
            for name in self._passes:
                with self._live(f"… {number + 1} of {len(self._calls)}: {_headings(call, name)}"):
                    measured = self._measured(call, name, cloned[number])
                self._say(_headings(call, name) + _numbers(measured))
                row[name] = _described(measured)
            rows.append(row)
        self._say(_LEGEND + (_MPS_LEGEND if self._on_mps else ""))
        return rows

    def _measure_peaks(self) -> None:
        for call in self._calls:
            kind = call.dtype, call.threads
            if kind in self.peaks:
                continue
            try:
                self.peaks[kind] = measure(call.device, *kind)
            except OrchardError as error:
                self._say(f"{mark('warning')} no peak for {call.dtype}: {str(error).splitlines()[0]}")
                continue
            self._say(f"{call.dtype} on {call.threads} threads: peak {self.peaks[kind]}")

    def _cloned(self) -> list[Mapping[str, Pair]]:
        """Times with clones, where that is a question."""
        if not self._on_mps or os.environ.get("ORCHARD_STORAGE"):
            return [{}] * len(self._calls)
        with self._live("… all of it with ORCHARD_STORAGE=clone, in another process"):
            return list(clones.times(self._calls, self._passes, self._rounds))

    def _measured(self, call: Call, name: str, cloned: Mapping[str, Pair]) -> Measurement:
        pair = call.against_pytorch(name, self._rounds)
        peak = self.peaks.get((call.dtype, call.threads))
        return Measurement(
            pair,
            None if peak is None else call.flops(name) / pair.fastest / peak.flops,
            call.against_pytorch(name, self._rounds, "cpu") if self._on_mps else None,
            clones.cost(pair, cloned[name]) if name in cloned else None,
        )

    def _say(self, text: str) -> None:
        if not self._silent:
            print(text, flush=True)

    @contextmanager
    def _live(self, text: str) -> Iterator[None]:
        """On a terminal the line that moves says it; in a log the package's own lines about compiling do."""
        if self._silent or not sys.stdout.isatty():
            yield
            return
        with live(lambda: text), quiet_progress():
            yield


def _title(call: Call) -> str:
    heads = f"H{call.heads}" if call.heads == call.kv_heads else f"H{call.heads}/{call.kv_heads}"
    return f"{call.device}, torch {torch.__version__}, B{call.batch} {heads}"


def _headings(call: Call, name: str) -> str:
    mask = "causal" if call.causal else call.mask
    return f"{call.dtype:8} {call.head_dim:3} {call.length:6}  {mask:6} {call.threads:7}  {name:8}"


def _numbers(measured: Measurement) -> str:
    pair = measured.pair
    share = "–" if measured.share is None else f"{measured.share:.0%}"
    times = f"{milliseconds(pair.ours):>10} {milliseconds(pair.theirs):>10}"
    line = f"{times} {pair.ratio:6.2f} {pair.ratio_of_minima:6.2f} {share:>5}"
    if measured.cpu is not None:
        line += f" {measured.cpu.ratio:6.2f}"
    if measured.clone is not None:
        line += f" {measured.clone:+7.1%}"
    return line


def _described(measured: Measurement) -> dict[str, Any]:
    values: dict[str, Any] = {**vars(measured.pair), "share_of_peak": measured.share}
    if measured.cpu is not None:
        values["cpu"] = vars(measured.cpu)
    if measured.clone is not None:
        values["clone"] = measured.clone
    return values
