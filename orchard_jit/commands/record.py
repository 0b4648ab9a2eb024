"""`orchard-jit record`: which kernels a program uses."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from orchard_jit.commands import kernels
from orchard_jit.commands.console import UsageError, count_text
from orchard_jit.jit import recording

DESCRIPTION = (
    "Run a program, and write the kernels that it and all its child processes use to a file for `orchard-jit "
    "prebuild`. What the file lists already stays in it, so that several runs add up. The exit code is that "
    "of the program. On several machines, set ORCHARD_JIT_RECORD yourself, to a file *.jsonl on each."
)
EXAMPLE = "orchard-jit record -o kernels.toml -- python train.py --steps 10"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("kernels.toml"),
        metavar="FILE",
        help="a new file, or one to add to (default: %(default)s)",
    )
    verb.add_argument("command", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...", help="what to run")


def run(*, out: Path, command: Sequence[str]) -> int:
    """Run the program and add what it used to the file. Returns the program's exit code."""
    words = list(command[1:] if command[:1] == ["--"] else command)
    if not words:
        raise UsageError("say what to run, after --")
    if out.exists():
        kernels.read(out)  # a file that can't be added to is told of before the run, not after it
    with tempfile.TemporaryDirectory(prefix="orchard_jit-") as folder:
        record = Path(folder, "record.jsonl")
        code = _run(words, {**os.environ, recording.VARIABLE: str(record)})
        used = list(recording.read(record)) if record.exists() else []
    new = kernels.append(out, used)
    print(
        f"orchard-jit: {count_text(len(used), 'kernel')} used, {new} of them new in {out}; "
        f"compile them with: orchard-jit prebuild {out}",
        file=sys.stderr,
    )
    return code


def _run(words: Sequence[str], environment: dict[str, str]) -> int:
    """The program's exit code, 128 and the number of the signal that ended it, or 127 if there is none."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's: we want its last words
    try:
        code = subprocess.run(
            words,
            env=environment,
            check=False,
            preexec_fn=lambda: signal.signal(signal.SIGINT, before),
        ).returncode
    except FileNotFoundError:
        print(f"orchard-jit: no program {words[0]!r}", file=sys.stderr)
        return 127
    finally:
        signal.signal(signal.SIGINT, before)
    return code if code >= 0 else 128 - code
