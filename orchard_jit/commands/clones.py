"""What it costs on MPS to copy private tensors through shared memory, which binding them directly saves.

The mode is read once in a process, so the clones have one of their own, which takes calls on stdin and gives
times on stdout.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from orchard_jit.commands.calls import Call
from orchard_jit.errors import OrchardError
from orchard_jit.timing import Pair

_CODE = "from orchard_jit.commands import clones; clones.serve()"


def times(calls: Sequence[Call], passes: Sequence[str], rounds: int) -> list[dict[str, Pair]]:
    """Ours with clones, and PyTorch's beside it, by pass, of each call.

    Raises:
        OrchardError: The process failed.

    """
    run = subprocess.run(
        [sys.executable, "-c", _CODE],
        input=json.dumps(
            {"calls": [asdict(call) for call in calls], "passes": list(passes), "rounds": rounds}
        ),
        env={**os.environ, "ORCHARD_STORAGE": "clone"},
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise OrchardError(f"timing ORCHARD_STORAGE=clone failed:\n{run.stderr.strip()}")
    return [{name: Pair(**pair) for name, pair in pairs.items()} for pairs in json.loads(run.stdout)]


def cost(direct: Pair, cloned: Pair) -> float:
    """The share of time that clones add, with PyTorch's time in each process as the yardstick."""
    return direct.ratio / cloned.ratio - 1


def serve() -> None:
    """The other process."""
    wanted = json.load(sys.stdin)
    calls = [Call(**values) for values in wanted["calls"]]
    passes, rounds = wanted["passes"], wanted["rounds"]
    print(json.dumps([{name: vars(call.against_pytorch(name, rounds)) for name in passes} for call in calls]))
