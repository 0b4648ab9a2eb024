"""`orchard-jit smoke`: everything from the compiler to a training, step by step, on this machine."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from orchard_jit.commands import options
from orchard_jit.commands.builds import quiet_progress
from orchard_jit.commands.console import count_text, fitted, live, mark, print_json, wrapped
from orchard_jit.commands.findings import Finding
from orchard_jit.commands.machine import require_device
from orchard_jit.commands.steps import Steps

DESCRIPTION = (
    "Toolchain, render, build, load, numerics, gradients, training: each a line with its time. Outputs "
    "and gradients are compared with attention in float64 and with PyTorch, and a small GPT is trained "
    "with both attentions side by side."
)
EXAMPLE = "orchard-jit smoke --clean"

NEEDS: dict[str, tuple[str, ...]] = {
    "toolchain": (),
    "render": (),
    "build": ("toolchain", "render"),
    "load": ("build",),
    "numerics": ("load",),
    "gradients": ("load",),
    "training": ("load",),
}
"""The steps in order, each with those that it can't do without."""

_NAME_WIDTH = max(map(len, NEEDS))
_LINE_WIDTH = 80
_INDENT = " " * (_NAME_WIDTH + 4)


@dataclass(frozen=True)
class Report:
    """How a step went: "ok", "failed" or "not run"."""

    name: str
    state: str
    seconds: float
    finding: Finding


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("--device", choices=("cpu", "mps"), default="cpu", help="where to run (default: cpu)")
    verb.add_argument("--clean", action="store_true", help="compile everything anew, into a temporary cache")
    options.add_json(verb)


def run(*, device: str, clean: bool, as_json: bool) -> int:
    """Run all steps and tell of each as it ends. 1 if any falls short."""
    require_device(device)
    if not as_json:
        threads = count_text(torch.get_num_threads(), "thread")
        print(f"orchard_jit on {device}, torch {torch.__version__}, {threads}\n")
    started = time.monotonic()
    reports: list[Report] = []
    with _empty_cache(reports) if clean else nullcontext():
        for report in _reports(Steps(device)):
            reports.append(report)
            if not as_json:
                _print(report)
    seconds = time.monotonic() - started
    passed = all(report.state == "ok" for report in reports)
    if as_json:
        print_json(
            {"device": device, "passed": passed, "seconds": seconds, "steps": [*map(_described, reports)]}
        )
    else:
        print(f"\n{_verdict(reports)} in {seconds:.1f} s")
    return 0 if passed else 1


def _reports(steps: Steps) -> Iterator[Report]:
    states: dict[str, str] = {}
    for name, needs in NEEDS.items():
        missing = next((need for need in needs if states[need] != "ok"), None)
        if missing is not None:
            report = Report(name, "not run", 0.0, Finding(f"needs {missing}"))
        else:
            report = _report(name, steps)
        states[name] = report.state
        yield report


def _report(name: str, steps: Steps) -> Report:
    started = time.monotonic()
    steps.state = ""

    def now() -> str:
        return f"… {name:{_NAME_WIDTH}}  {steps.state}  {time.monotonic() - started:.0f} s"

    # On a terminal the line that moves says it; in a log the package's own lines about compiling do.
    with live(now), quiet_progress() if sys.stdout.isatty() else nullcontext():
        try:
            finding: Finding = getattr(steps, name)()
        except Exception as error:  # whatever goes wrong is what this step has found
            finding = Finding("stopped", fault=f"{type(error).__name__}: {error}")
    return Report(name, "failed" if finding.fault else "ok", time.monotonic() - started, finding)


def _print(report: Report) -> None:
    seconds = f"{report.seconds:.1f} s" if report.state != "not run" else ""
    head = f"{report.name:{_NAME_WIDTH}}  {report.finding.text}"
    print(f"{mark(report.state)} {head:{_LINE_WIDTH - 10}}{seconds:>8}".rstrip(), flush=True)
    for line in wrapped(report.finding.fault or "", len(_INDENT)):
        print(f"{_INDENT}{line}")
    for line in report.finding.table:
        print(fitted(f"{_INDENT}{line}".rstrip()))


def _verdict(reports: list[Report]) -> str:
    failed = [report.name for report in reports if report.state == "failed"]
    if failed:
        return f"{mark('failed')} {', '.join(failed)} fell short,"
    return f"{mark('ok')} all {len(reports)} steps"


def _described(report: Report) -> dict[str, object]:
    return {
        "name": report.name,
        "state": report.state,
        "seconds": report.seconds,
        "found": report.finding.text,
        "fault": report.finding.fault,
        "data": dict(report.finding.data),
    }


@contextmanager
def _empty_cache(reports: Sequence[Report]) -> Iterator[None]:
    """A fresh cache in place of all others; deleted afterwards, unless a failed build has left its log."""
    names = ("ORCHARD_JIT_CACHE_DIR", "ORCHARD_JIT_PREBUILT_DIRS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    folder = tempfile.mkdtemp(prefix="orchard_jit-")
    os.environ["ORCHARD_JIT_CACHE_DIR"] = folder
    try:
        yield
    finally:
        del os.environ["ORCHARD_JIT_CACHE_DIR"]
        os.environ.update(before)
        if not any(report.name == "build" and report.state == "failed" for report in reports):
            shutil.rmtree(folder, ignore_errors=True)
