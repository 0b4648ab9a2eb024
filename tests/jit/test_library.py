"""One library for all who ask, whoever asks, whenever, and whatever happens to the others."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from orchard_jit.errors import CompileError, MissingVariantError, ToolchainError
from orchard_jit.jit import build, library, recipe
from orchard_jit.jit.lock import held
from orchard_jit.selection import select


@pytest.fixture(autouse=True)
def _plain_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def tiny(monkeypatch):
    """A recipe that compiles in no time, and whose library answers 42."""
    monkeypatch.setattr(library, "_loaded", {})
    return make_recipe("int answer() { return 42; }")


def make_recipe(body, title="a tiny library"):
    return recipe.Recipe(
        title=title,
        spec={"variant": {}},
        shelf=recipe.platform_tag(),
        origin={"body": body},
        files={"tiny.cpp": f'extern "C" {body}\n'},
        sources=("tiny.cpp",),
        compile_flags=("-O1",),
        link_flags=(),
    )


def python(code, **environment):
    """Start a fresh Python on some code."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


USE_TINY = """
    from tests.jit.test_library import make_recipe
    from orchard_jit.jit import library
    print(library.load(make_recipe("int answer() { return 42; }")).answer())
"""


def test_a_miss_builds_and_a_hit_does_not(empty_cache, tiny, monkeypatch, capfd):
    assert library.find(tiny) is None
    assert library.load(tiny).answer() == 42
    said = capfd.readouterr().err
    assert f"compiling a tiny library into {empty_cache} (about 2 s)" in said
    assert "compiled a tiny library in" in said

    entry = library.find(tiny)
    assert sorted(path.name for path in entry.directory.iterdir()) == [
        "build.ninja",
        "manifest.json",
        f"orchard_{tiny.key}.so",
        "src",
    ]
    assert entry.manifest["toolchain"]["compiler"] != "unknown"

    monkeypatch.setattr(library, "_loaded", {})  # as a new process would
    monkeypatch.setattr(build, "build", None)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("ORCHARD_JIT_OFFLINE", "1")
    assert library.load(tiny).answer() == 42
    assert capfd.readouterr().err == ""


def test_quiet(empty_cache, tiny, monkeypatch, capfd):
    monkeypatch.setenv("ORCHARD_JIT_QUIET", "1")
    library.load(tiny)
    assert capfd.readouterr().err == ""


def test_offline_says_how_to_prebuild(empty_cache, monkeypatch):
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setenv("ORCHARD_JIT_OFFLINE", "1")
    wanted = select(
        backend="cpu", kernel="forward", dtype="float32", head_dim=64, head_dim_v=32, features=["causal"]
    )
    with pytest.raises(MissingVariantError) as caught:
        library.load(recipe.for_variant(wanted))
    command = "orchard-jit prebuild --head-dim 64 --dtype float32 --head-dim-v 32 --causal yes --backend cpu"
    assert command in str(caught.value)
    assert str(empty_cache) in str(caught.value)


def test_compile_errors_show_the_first_errors_and_keep_the_sources(empty_cache, tiny):
    broken = make_recipe("int answer() { return fourty_two; }", title="a broken library")
    with pytest.raises(
        CompileError, match=r"a broken library failed:\n.*fourty_two.*\nfull log: .*build\.log"
    ) as caught:
        library.load(broken)
    log = str(caught.value).split("full log: ")[1].splitlines()[0]
    assert "fourty_two" in Path(log).read_text()
    assert library.find(broken) is None


def test_a_missing_compiler_is_named_with_the_remedy(empty_cache, tiny, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(ToolchainError, match=r"'no-such-compiler' is not on PATH.*apt-get install g\+\+"):
        library.load(tiny)


def test_ninja_is_found_without_an_activated_environment(empty_cache, tiny, tmp_path, monkeypatch):
    """As when Python is called by its path: its scripts are not on PATH."""
    for tool in ("c++", "as", "ld", "which"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library.load(tiny).answer() == 42


def test_a_read_only_cache_without_compiler_and_ninja_is_a_hit(empty_cache, tiny, monkeypatch):
    library.load(tiny)
    for path in [*empty_cache.rglob("*"), empty_cache]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    try:
        out, err = finish(python(USE_TINY, PATH="/nonexistent", HOME="/nonexistent"))
        assert (out, err) == ("42", "")
    finally:
        for path in [empty_cache, *empty_cache.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_eight_processes_build_once(empty_cache):
    processes = [python(USE_TINY) for _ in range(8)]
    results = [finish(process) for process in processes]
    assert [out for out, _ in results] == ["42"] * 8
    assert sum("compiled a tiny library in" in err for _, err in results) == 1


def test_eight_threads_build_once(empty_cache, tiny, capfd):
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(library.load(tiny).answer())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [42] * 8
    assert capfd.readouterr().err.count("compiled a tiny library in") == 1


def test_several_libraries_are_built_side_by_side(empty_cache, tiny, capfd):
    recipes = [make_recipe(f"int answer() {{ return {i}; }}", title=f"number {i}") for i in range(2)]
    assert [loaded.answer() for loaded in library.load_all(recipes)] == [0, 1]
    lines = capfd.readouterr().err.splitlines()
    assert all("compiling number" in line for line in lines[:2]), lines


SLOW_COMPILER = """#!/bin/sh
echo started >> "$STARTED"
case "$*" in *-c*) sleep 30;; esac
exec {compiler} "$@"
"""


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def slow_build(tmp_path, empty_cache):
    """A process in the middle of compiling the tiny library, for 30 seconds: its `c++` is a slow one.

    It is slow by PATH and not by CXX, which would be in the key: this is the build that `tiny` waits for.
    """
    script, started = tmp_path / "slow" / "c++", tmp_path / "started"
    script.parent.mkdir()
    script.write_text(SLOW_COMPILER.format(compiler=shutil.which("c++")))
    script.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(USE_TINY)],
        env={
            **os.environ,
            "PATH": os.pathsep.join((str(script.parent), os.environ["PATH"])),
            "STARTED": str(started),
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A job in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: started.exists() and any((empty_cache / "v1").glob(".staging/*/obj/build.ninja")))
    time.sleep(1)  # past the questions after its version, into the 30 seconds
    return process


def test_sigkill_in_the_middle_of_a_build_hurts_nobody(empty_cache, slow_build, tiny):
    os.killpg(slow_build.pid, signal.SIGKILL)
    slow_build.communicate()
    assert (empty_cache / "v1" / ".locks" / tiny.key).exists()
    # The lock file is still there, its holder is not: the next one just builds.
    began = time.monotonic()
    assert library.load(tiny).answer() == 42
    assert time.monotonic() - began < 25


def test_ctrl_c_ends_a_build_and_leaves_nothing(empty_cache, slow_build):
    os.killpg(slow_build.pid, signal.SIGINT)
    _, err = slow_build.communicate(timeout=20)
    assert "KeyboardInterrupt" in err
    assert not list((empty_cache / "v1" / ".staging").iterdir())


def test_waiting_says_for_whom(empty_cache, tmp_path):
    said = []
    path = tmp_path / "locks" / "key"
    with held(path, said.append):
        assert said == []
        waiter = threading.Thread(target=lambda: held(path, said.append).__enter__(), daemon=True)
        waiter.start()
        wait_until(lambda: said)
    waiter.join(10)
    assert said[0].startswith(f"process {os.getpid()} since ")
