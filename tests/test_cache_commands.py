"""`list`, `show`, `verify`, `prune` and `clear`: they say what is there, and change what they are told to."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys

import pytest

from orchard_jit.cli import main
from orchard_jit.commands import cache_checks
from orchard_jit.errors import CacheError
from orchard_jit.jit import eviction, lock
from orchard_jit.jit.manifest import FILE
from orchard_jit.jit.recipe import ABI_VERSION
from orchard_jit.jit.store import Store

from .jit.tiny import SHELF, publish

A, B, C = ("a" * 20, "b" * 20, "c" * 20)
DAY = 86400.0


@pytest.fixture
def store(empty_cache):
    """Three libraries, the first of which was used most recently."""
    store = Store(empty_cache, writable=True)
    for days, key in ((0, A), (0.5, B), (2, C)):
        entry = publish(store, b"x" * 5000, key, title=f"kernel {key[0]}", key_inputs={"sources": ["a.cpp"]})
        used(entry, days)
    return store


def used(entry, days):
    then = (entry.directory / FILE).stat().st_mtime - days * DAY
    os.utime(entry.directory / FILE, (then, then))


def printed_json(capsys, *arguments, code=0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def keys(entries):
    return [entry["key"] for entry in entries]


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def damage(store, key=A):
    library = store.root / "v1" / SHELF / key / "lib.so"
    library.write_bytes(library.read_bytes() + b"x")


class TestList:
    def test_all_entries(self, store, capsys):
        listed = printed_json(capsys, "list")
        assert keys(listed) == [A, B, C]
        assert listed[0]["name"] == "kernel a"
        assert listed[0]["size"] == 5000
        assert listed[0]["writable"]
        assert main(["list"]) == 0
        out = capsys.readouterr().out
        assert A[:10] in out
        assert "kernel c" in out

    def test_nothing(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "none"))
        assert main(["list"]) == 0
        assert "no cache yet" in capsys.readouterr().out
        assert not (tmp_path / "none").exists()


class TestShow:
    @pytest.mark.parametrize("wanted", [A, A[:4], "kernel a"])
    def test_by_prefix_and_by_name(self, store, capsys, wanted):
        shown = printed_json(capsys, "show", wanted)
        assert shown["manifest"]["key"] == A
        assert shown["damage"] is None
        assert main(["show", wanted]) == 0
        out = capsys.readouterr().out
        assert shown["directory"] in out
        assert "whole" in out
        assert "a.cpp" in out

    def test_something_unknown_is_one_clean_message(self, store, capsys):
        assert main(["show", "nothing"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("orchard-jit: no entry")
        assert len(captured.err.splitlines()) == 1

    def test_damage(self, store, capsys):
        damage(store)
        assert printed_json(capsys, "show", A, code=1)["damage"]
        assert cache_checks.cache().state == "warning"
        assert (store.root / "v1" / SHELF / A).exists(), "they only look"

    @pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files away")
    def test_a_prebuilt_folder_may_be_somebody_elses(self, store, capsys, monkeypatch, tmp_path):
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(store.root))
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "none"))
        for path in (store.root, *store.root.rglob("*")):
            os.chown(path, 54321, -1)
        assert printed_json(capsys, "show", A)["damage"] is None
        assert printed_json(capsys, "verify")["whole"] == 3

    @pytest.mark.parametrize("lie", [None, 7, "text", [], {"CXX": 3, "compile_flags": {"a": [1]}}])
    def test_what_is_only_for_people_may_be_anything(self, empty_cache, capsys, lie):
        publish(Store(empty_cache, writable=True), key_inputs=lie, toolchain=lie)
        for verb in (["show", "a kernel"], ["list"], ["verify"], ["prune", "--dry-run", "--stale"]):
            assert main(verb) == 0, capsys.readouterr().err


class TestVerify:
    def test_whole(self, store, capsys):
        assert printed_json(capsys, "verify") == {"whole": 3, "damaged": []}

    @pytest.mark.parametrize("how", ["a changed library", "a manifest that lies", "no manifest"])
    def test_what_is_damaged_is_set_aside(self, store, capsys, how):
        manifest = store.root / "v1" / SHELF / A / FILE
        if how == "a changed library":
            damage(store)
        elif how == "no manifest":
            manifest.unlink()
        else:
            manifest.write_text("{}")
        for dry_run in (True, False):
            found = printed_json(capsys, "verify", *["--dry-run"] * dry_run, code=1)
            assert found["whole"] == 2
            assert [one["set_aside"] for one in found["damaged"]] == [not dry_run]
        assert main(["verify"]) == 0
        assert "2 libraries whole, 0 damaged" in capsys.readouterr().out

    def test_prebuilt_ones_are_named_and_stay(self, store, capsys, tmp_path, monkeypatch):
        damage(store)
        prebuilt = shutil.copytree(store.root, tmp_path / "prebuilt")
        prebuilt.chmod(0o755)
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "none"))
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(prebuilt))
        for _ in range(2):
            (one,) = printed_json(capsys, "verify", code=1)["damaged"]
            assert not one["set_aside"]


class TestPrune:
    def test_within_the_limits_nothing_goes(self, store, capsys):
        assert printed_json(capsys, "prune")["entries"] == []
        assert keys(printed_json(capsys, "list")) == [A, B, C]

    def test_what_was_used_least_recently_goes_first(self, store, capsys):
        pruned = printed_json(capsys, "prune", "--max-size", "12kB")
        assert keys(pruned["entries"]) == [C]
        assert pruned["entries"][0]["reason"] == "least recently used"
        assert keys(printed_json(capsys, "list")) == [A, B]

    def test_a_dry_run_says_the_same_and_does_nothing(self, store, capsys):
        pruned = printed_json(capsys, "prune", "--max-size", "1kB", "--dry-run")
        assert keys(pruned["entries"]) == [C, B, A]
        assert not pruned["removed"]
        assert keys(printed_json(capsys, "list")) == [A, B, C]

    def test_age(self, store, capsys):
        pruned = printed_json(capsys, "prune", "--max-age", "1")
        assert keys(pruned["entries"]) == [C]
        assert pruned["entries"][0]["reason"] == "not used for 2 days"

    def test_the_limit_of_the_environment(self, store, capsys, monkeypatch):
        monkeypatch.setenv("ORCHARD_JIT_CACHE_MAX_SIZE", "off")
        assert printed_json(capsys, "prune")["entries"] == []
        monkeypatch.setenv("ORCHARD_JIT_CACHE_MAX_SIZE", "0.001 GB")
        assert printed_json(capsys, "prune")["entries"] == []
        monkeypatch.setenv("ORCHARD_JIT_CACHE_MAX_SIZE", "7k")
        assert keys(printed_json(capsys, "prune")["entries"]) == [C, B]
        monkeypatch.setenv("ORCHARD_JIT_CACHE_MAX_SIZE", "much")
        assert main(["prune"]) == 1
        assert "must be written as 500MB or 2GB, got 'much', or off" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"spec": {"binding": {"torch": "2.1.0"}}}, "for torch 2.1.0"),
            ({"key_inputs": {"origin": {"values": {"abi_version": ABI_VERSION - 1}}}}, "plug-in interface"),
            (
                {"key_inputs": {"origin": {"templates": {"cpu": "0" * 64}}}},
                "sources of another version",
            ),
            ({"key_inputs": {"origin": {"templates": {"gone": "0" * 64}}}}, "sources of another version"),
        ],
    )
    def test_stale_versions_go_first(self, store, capsys, changes, reason):
        publish(store, b"x" * 5000, "d" * 20, **changes)  # the newest of all
        old_layout = store.root / "v0"
        old_layout.mkdir()
        newer_layout = store.root / "v99"
        newer_layout.mkdir()
        (entry,) = printed_json(capsys, "prune", "--max-size", "18kB", "--dry-run")["entries"]
        assert entry["key"] == "d" * 20
        pruned = printed_json(capsys, "prune", "--stale")
        assert keys(pruned["entries"]) == ["d" * 20]
        assert reason in pruned["entries"][0]["reason"]
        assert not old_layout.exists()
        assert newer_layout.exists(), "a newer version of the package has made it"

    def test_what_a_process_holds_stays(self, store, capsys):
        assert store.find(SHELF, C).hold()
        for arguments in (["--dry-run"], []):
            pruned = printed_json(capsys, "prune", "--max-size", "0", *arguments, code=1)
            assert keys(pruned["entries"]) == [B, A]
            assert keys(pruned["in_use"]) == [C]
        assert main(["prune", "--max-size", "0"]) == 1
        assert "1 library stays: in use by running programs" in capsys.readouterr().out

    def test_rests_of_builds_go(self, store, capsys):
        dead, failed = store.stage(A), store.keep_failed(store.stage(B))
        with lock.held(store.lock_path(A), print):
            assert printed_json(capsys, "prune", "--dry-run")["folders"] == [str(failed.parent)]
        assert set(printed_json(capsys, "prune")["folders"]) == {str(dead), str(failed.parent)}
        assert not dead.exists()
        assert not failed.exists()

    @pytest.mark.parametrize("size", ["7", "7b", "7 KB", "1.5MB", "2GiB", "3t"])
    def test_sizes(self, size):
        assert eviction.bytes_of(size) > 0

    @pytest.mark.parametrize("size", ["", "GB", "-1", "1 2", "nan", "1e3"])
    def test_no_sizes(self, size, capsys):
        assert "500MB or 2GB" in usage_error(capsys, "prune", f"--max-size={size}")

    def test_a_cache_of_somebody_else_is_left_alone(self, store, capsys):
        store.root.chmod(0o777)
        assert main(["prune", "--max-size", "0"]) == 1
        assert "may be written by others" in capsys.readouterr().err


class TestClear:
    def test_everything_goes_but_what_is_prebuilt(self, store, tmp_path, capsys, monkeypatch):
        prebuilt = shutil.copytree(store.root, tmp_path / "prebuilt")
        prebuilt.chmod(0o755)
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(prebuilt))
        monkeypatch.setattr("sys.stdin", io.StringIO())
        (store.root / "v1" / SHELF / ("e" * 20)).mkdir()  # no entry, but in the way
        assert "--yes" in usage_error(capsys, "clear")
        assert main(["clear", "--dry-run"]) == 0
        assert "3 libraries" in capsys.readouterr().out
        cleared = printed_json(capsys, "clear", "--yes")
        assert keys(cleared["entries"]) == [A, B, C]
        assert cleared["bytes"] > 15_000
        assert store.directories() == []
        assert {entry["writable"] for entry in printed_json(capsys, "list")} == {False}
        assert main(["clear", "--yes"]) == 0
        assert "nothing removed from" in capsys.readouterr().out

    @pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("", 1, 3)])
    def test_a_terminal_is_asked(self, answer, code, left, store, capsys, monkeypatch):
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("builtins.input", lambda question: answer)
        assert main(["clear"]) == code
        capsys.readouterr()
        assert len(printed_json(capsys, "list")) == left

    def test_what_a_process_holds_stays_unless_all_go(self, store, capsys):
        assert store.find(SHELF, C).hold()
        assert keys(printed_json(capsys, "clear", "--yes", code=1)["in_use"]) == [C]
        assert keys(printed_json(capsys, "clear", "--yes", "--all")["entries"]) == [C]
        assert store.directories() == []

    def test_a_read_only_cache_is_an_error(self, store, capsys, monkeypatch):
        def refuse(*_):
            raise PermissionError(13, "Permission denied", str(store.root))

        monkeypatch.setattr(sys.modules["pathlib"].Path, "rename", refuse)
        assert main(["clear", "--yes"]) == 1
        assert "Permission denied" in capsys.readouterr().err


def test_an_unsound_limit_is_an_error_before_the_work(monkeypatch):
    monkeypatch.setenv("ORCHARD_JIT_CACHE_MAX_SIZE", "some")
    with pytest.raises(CacheError, match="ORCHARD_JIT_CACHE_MAX_SIZE"):
        eviction.max_bytes()
