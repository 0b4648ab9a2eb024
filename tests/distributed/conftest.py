"""Processes are started once for each size of their group, by whichever of pytest's workers asks first."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Found:
    """What the processes of a group have found."""

    size: int
    folder: Path

    def __getitem__(self, check):
        """Of one check, by rank; what a rank that died has not left is left out."""
        files = [self.folder / f"{check}-{rank}.pt" for rank in range(self.size)]
        return [torch.load(file) for file in files if file.exists()]


@pytest.fixture(scope="session", params=(2, 4), ids="{} processes".format)
def found(request, tmp_path_factory):
    """What a group of this many processes has found."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / f"group-of-{request.param}"
    with (shared / "groups.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            start("tests.distributed.job", request.param, folder)
    return Found(request.param, folder)


def start(module, size, folder):
    """Run a module in a group of processes, and return what they say on stderr."""
    command = [sys.executable, "-m", module, str(size), str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stderr
