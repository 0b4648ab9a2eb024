"""A build that hangs can be interrupted, ends at once, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from orchard_jit.jit import library, lock

from .tiny import USE_TINY, make_recipe, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")

HANGING_COMPILER = """#!/bin/sh
trap '' INT TERM
case "$*" in *{stage}*) echo started >> "$STARTED"; sleep 30;; esac
exec {compiler} "$@"
"""
SEVERAL = """
    from tests.jit.tiny import make_recipe
    from orchard_jit.jit import library
    library.load_all([make_recipe(f"int answer() {{ return {i}; }}") for i in range(4)])
"""
CANDIDATES = """
    from orchard_jit.selection import select
    from orchard_jit.tuning import candidates
    default = select(backend="cpu", kernel="forward", dtype="float32", head_dim=8, head_dim_v=8)
    candidates.built([default, *candidates.neighbours(default)], float("inf"), lambda done: None)
"""


@pytest.fixture(params=["--version", "-c", "-shared"])
def stage(request):
    """What the compiler is asked when it begins to hang, deaf to all signals that it can ignore."""
    return request.param


@pytest.fixture
def start(tmp_path, empty_cache, monkeypatch):
    """start(code, stage): a process in the middle of a build that will not end by itself.

    Its `c++` hangs by PATH and not by CXX, which would be in the key.
    """
    script, started = tmp_path / "slow" / "c++", tmp_path / "started"
    script.parent.mkdir()
    monkeypatch.delenv("CXX", raising=False)
    processes = []

    def start(code, stage):
        script.write_text(HANGING_COMPILER.format(stage=stage, compiler=shutil.which("c++")))
        script.chmod(0o755)
        path = os.pathsep.join((str(script.parent), os.environ["PATH"]))
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code)],
                env={**os.environ, "PATH": path, "STARTED": str(started)},
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                # A job in the background of a shell ignores Ctrl-C, and so would its children.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
        )
        wait_until(started.exists)
        return processes[-1]

    yield start
    for process in processes:
        for left in in_session(process.pid):
            os.kill(left, signal.SIGKILL)
        process.wait()


def in_session(session):
    """What it has started and still runs, directly or not."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def is_clean(cache):
    return not any((cache / "v1" / name).exists() and list((cache / "v1" / name).iterdir()) for name in (
        ".staging", ".failed", ".damaged"))  # fmt: skip


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "notebook"])
def test_ctrl_c(empty_cache, start, stage, whole_group):
    """In a terminal it reaches all processes; from a notebook, Python alone."""
    process = start(USE_TINY, stage)
    began = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert in_session(process.pid) == []
    assert is_clean(empty_cache)
    assert all(lock.is_free(path) for path in empty_cache.glob("v1/.locks/*"))


@pytest.mark.parametrize("code", [SEVERAL, CANDIDATES], ids=["of a call", "of tuning"])
def test_ctrl_c_ends_several_builds_and_begins_no_other(empty_cache, start, code):
    process = start(code, "-c")
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert in_session(process.pid) == []
    assert is_clean(empty_cache)


def test_ctrl_c_ends_the_wait_for_somebody_elses_build(empty_cache, start):
    builder = start(USE_TINY, "-c")
    waiter = start(USE_TINY, "-c")
    said = ""
    while "waiting for" not in said:
        said = waiter.stderr.readline()
    assert f"waiting for a tiny library: process {builder.pid} since" in said
    os.kill(waiter.pid, signal.SIGINT)
    _, err = waiter.communicate(timeout=20)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert in_session(builder.pid)


def test_sigkill_in_the_middle_of_a_build_hurts_nobody(empty_cache, start, monkeypatch):
    process = start(USE_TINY, "-c")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    monkeypatch.setattr(library, "_loaded", {})
    began = time.monotonic()
    assert library.load(make_recipe()).answer() == 42  # its lock file is still there, and nobody holds it
    assert time.monotonic() - began < 20
    assert is_clean(empty_cache), "what the dead one left is removed by the next build"
