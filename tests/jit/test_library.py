"""One library for all who ask, whoever asks, whenever, and whatever happens to the others."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import shutil
import stat
import threading
from pathlib import Path

import pytest

from orchard_jit.errors import CompileError, MissingVariantError, ToolchainError
from orchard_jit.jit import build, eviction, library, recipe
from orchard_jit.jit.lock import held
from orchard_jit.jit.store import Store
from orchard_jit.selection import select

from .tiny import USE_TINY, finish, make_recipe, publish, python, wait_until


@pytest.fixture(autouse=True)
def _plain_compiler(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def tiny(monkeypatch):
    """A recipe that compiles in no time, and whose library answers 42."""
    monkeypatch.setattr(library, "_loaded", {})
    return make_recipe()


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


def test_three_processes_build_once(empty_cache):
    processes = [python(USE_TINY) for _ in range(3)]
    results = [finish(process) for process in processes]
    assert [out for out, _ in results] == ["42"] * 3
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


@pytest.mark.parametrize("name", ["two words", "a$HOME", "q\"uo'te", "co:lon|pipe", "tüte", "new\nline"])
def test_any_path_will_do(tmp_path, monkeypatch, tiny, name):
    """Ninja, the shell and `cpp_extension` each have letters that they take for their own."""
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / name))
    assert library.load(tiny).answer() == 42
    assert library.find(tiny).directory.is_relative_to(tmp_path / name)


def test_flags_reach_the_compiler_as_they_are(empty_cache, tiny):
    flags = ("-DTEXT=\"two words, $HOME and 'more'\"", "-O1")
    text = dataclasses.replace(make_recipe("const char* answer() { return TEXT; }"), compile_flags=flags)
    answer = library.load(text).answer
    answer.restype = ctypes.c_char_p
    assert answer() == b"two words, $HOME and 'more'"


RUBBISH_COMPILER = """#!/bin/sh
case "$*" in *"{library}"*) for last; do :; done; {act};; *) exec {compiler} "$@";; esac
"""


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ('echo rubbish > "$last"', "invalid ELF header|file too short|not a mach-o"),
        (': > "$last"', "file too short|not a mach-o"),
        ("echo nothing was made", "cannot open shared object|no such file"),
        ("echo 'error: no mercy' >&2; exit 1", "no mercy"),
        ("kill -SEGV $$", "failed"),
        ('exec {compiler} -shared -x c++ /dev/null -o "$last"', "has no answer"),
    ],
)
def test_rubbish_is_never_published(empty_cache, tiny, tmp_path, monkeypatch, act, words):
    script = tmp_path / "bin" / "c++"
    script.parent.mkdir()
    real = shutil.which("c++")
    act = act.format(compiler=real)
    script.write_text(RUBBISH_COMPILER.format(library=f"{tiny.library_name}", act=act, compiler=real))
    script.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", os.pathsep.join((str(script.parent), path)))
    with pytest.raises(CompileError, match=f"(?si)a tiny library failed:.*({words})"):
        library.load(tiny)
    assert library.find(tiny) is None
    assert not list((empty_cache / "v1" / ".staging").iterdir())
    monkeypatch.setenv("PATH", path)
    assert library.load(tiny).answer() == 42  # the next one has a compiler that works


def test_what_was_made_for_another_system_is_made_anew(empty_cache, tiny, monkeypatch):
    """Whole, as its manifest says, and of no use here: it wants a newer C library, for example."""
    staged = Store(empty_cache, writable=True).stage(tiny.key)
    (staged / "other.so").write_bytes(b"\x7fELF of another system")
    manifest = {"title": tiny.title, "spec": tiny.spec, "library": "other.so", "build_seconds": 1}
    Store(empty_cache, writable=True).publish(staged, tiny.shelf, tiny.key, manifest)
    with pytest.warns(UserWarning, match="set aside and rebuilt: .*other.so"):
        assert library.load(tiny).answer() == 42


def test_what_another_machine_has_published_and_is_not_visible_yet(empty_cache, tiny, monkeypatch):
    """On a network mount: the folder can be seen and what is in it can't."""
    place = empty_cache / "v1" / tiny.shelf / tiny.key
    place.mkdir(parents=True)
    rename = Path.rename

    def refused(path, target):
        if target == place:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    for _ in range(2):  # this process and the next one go on with copies of their own
        monkeypatch.setattr(library, "_loaded", {})
        assert library.load(tiny).answer() == 42
        assert not list(place.iterdir())
        assert not list((empty_cache / "v1" / ".staging").iterdir())


def test_a_fork_in_the_middle_of_a_load_can_load(empty_cache, tiny):
    """The thread that holds the lock of a key is not in the child, and would never let go of it."""
    lock = library._thread_locks.setdefault(tiny.key, threading.Lock())
    with lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if library.load(tiny).answer() == 42 else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_the_cache_stays_below_its_limit(empty_cache, tiny, monkeypatch):
    monkeypatch.setattr(eviction, "_publications", 0)
    library.load(tiny)
    monkeypatch.setenv("ORCHARD_JIT_CACHE_MAX_SIZE", "1kB")
    monkeypatch.setattr(eviction, "_publications", 0)
    publish(Store(empty_cache, writable=True))
    library.load(make_recipe("int answer() { return 43; }", "another one"))
    (left, also) = sorted(entry.title for entry in Store(empty_cache, writable=True).entries())
    assert (left, also) == ("a tiny library", "another one"), "this process holds both, and not the third"
