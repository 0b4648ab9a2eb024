"""Entries are whole or not there, whatever lies in the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque

import pytest

from orchard_jit.errors import CacheError
from orchard_jit.jit import leftovers, lock, roots
from orchard_jit.jit.manifest import FILE
from orchard_jit.jit.store import Store
from orchard_jit.jit.trust import Damage

from .tiny import KEY, SHELF, publish


@pytest.fixture
def store(tmp_path):
    (tmp_path / "root").mkdir(mode=0o700)
    return Store(tmp_path / "root", writable=True)


def test_what_is_published_is_found(store):
    entry = publish(store)
    found = store.find(SHELF, KEY)
    assert found == entry
    assert found.library.read_bytes() == b"library"
    assert (found.key, found.shelf) == (KEY, SHELF)
    assert list(store.entries()) == [entry]
    assert store.find(SHELF, "f" * 20) is None
    assert store.find("darwin-arm64", KEY) is None


def test_the_second_publisher_loses_and_nothing_breaks(store):
    publish(store, b"first")
    assert publish(store, b"second") is None
    assert store.find(SHELF, KEY).library.read_bytes() == b"first"


def test_a_copied_and_touched_tree_is_still_a_hit(store, tmp_path):
    publish(store)
    copy = tmp_path / "copy"
    shutil.copytree(store.root, copy)
    for path in copy.rglob("*"):
        path.touch()
    assert Store(copy, writable=False).find(SHELF, KEY) is not None


def test_others_may_read_what_is_published_and_write_nothing(store):
    before = os.umask(0)  # as careless as can be
    try:
        entry = publish(store)
    finally:
        os.umask(before)
    for path in (entry.directory.parent, entry.directory, entry.library, entry.directory / FILE):
        assert path.stat().st_mode & 0o022 == 0
        assert path.stat().st_mode & 0o044 == 0o044


def damage_append(entry):
    with entry.library.open("ab") as file:
        file.write(b"x")


def damage_flip(entry):
    entry.library.write_bytes(b"Library")


def damage_delete(entry):
    entry.library.unlink()


@pytest.mark.parametrize("damage", [damage_append, damage_flip, damage_delete])
def test_a_damaged_library_is_never_returned(store, damage):
    damage(publish(store))
    with pytest.warns(UserWarning, match="damaged cache entry set aside"):
        assert store.find(SHELF, KEY) is None
    assert len(store.kept()) == 1
    assert publish(store) is not None  # the place is free again


def test_a_damaged_prebuilt_entry_is_passed_over_and_left_alone(store):
    damage_append(publish(store))
    with pytest.warns(UserWarning, match="damaged prebuilt entry ignored"):
        assert Store(store.root, writable=False).find(SHELF, KEY) is None
    assert not store.kept()


LIES = {
    "no JSON": "{",
    "nothing": "",
    "binary": b"\xff\xfe\x00",
    "deep": "[" * 100_000,
    "no object": "[]",
    "no fields": "{}",
    **{f"no {name}": {name: None} for name in ("title", "library", "size", "sha256", "spec", "created")},
    "a library elsewhere": {"library": "../../x.so"},
    "an absolute library": {"library": "/lib/x.so"},
    "the folder itself": {"library": ".."},
    "a size that is no number": {"size": "7"},
    "a size that is a truth": {"size": True},
    "a time beyond the calendar": {"created": 1e300},
    "a time that is none": {"created": float("nan")},
    "seconds before the start": {"build_seconds": -1},
    "two specs": {"spec": {"variant": {}, "binding": {}}},
    "a spec that is a list": {"spec": {"variant": []}},
    "a title with escapes": {"title": "\033[2J"},
    "another key": {"key": "f" * 20},
    "another shelf": {"shelf": "darwin-arm64"},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_manifest_that_lies_is_no_entry(store, lie):
    manifest = publish(store).directory / FILE
    if isinstance(lie, dict):
        lie = json.dumps({**json.loads(manifest.read_text()), **lie})
    manifest.write_bytes(lie.encode() if isinstance(lie, str) else lie)
    assert list(store.entries()) == []
    with pytest.warns(UserWarning, match="damaged"):
        assert store.find(SHELF, KEY) is None
    assert publish(store) is not None


def test_nothing_is_published_that_could_not_be_read(store):
    with pytest.raises(Damage, match="build_seconds"):
        publish(store, build_seconds="long")


def test_what_is_not_visible_yet_is_left_alone(store):
    """Another machine has published; here, the folder is there and its manifest is not."""
    entry = publish(store)
    hidden = (entry.directory / FILE).rename(entry.directory / "hidden")
    assert store.find(SHELF, KEY) is None
    assert publish(store, b"ours") is None
    hidden.rename(entry.directory / FILE)
    assert store.find(SHELF, KEY) == entry


@pytest.mark.parametrize("name", [FILE, "lib.so"])
def test_a_pipe_in_a_files_place_is_damage_and_nobody_waits_for_it(store, name):
    path = publish(store).directory / name
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match="is no plain file"):
        assert store.find(SHELF, KEY) is None


def test_an_unfinished_directory_in_the_place_is_moved_away_in_time(store):
    place = store.root / "v1" / SHELF / KEY
    place.mkdir(parents=True)
    (place / "half").write_text("written")
    os.utime(place, (0, 0))
    with pytest.warns(UserWarning, match="is no entry"):
        assert publish(store) is not None


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_changes_no_result(store, monkeypatch, jump):
    entry = publish(store)
    monkeypatch.setattr("time.time", lambda: entry.manifest["created"] + jump)
    assert store.find(SHELF, KEY) == entry
    assert entry.hold()
    assert publish(store) is None
    assert publish(store, key="f" * 20) is not None


def test_removed_entries_are_gone(store):
    entry = publish(store)
    assert store.remove(entry)
    assert store.remove(entry)
    assert store.find(SHELF, KEY) is None
    assert not list((store.root / "v1" / ".staging").iterdir())


def test_what_a_process_holds_is_not_removed(store):
    entry = publish(store)
    assert entry.hold()
    assert not store.remove(entry)
    assert store.find(SHELF, KEY) == entry
    assert store.remove(entry, even_held=True)
    assert not entry.hold()


def test_few_descriptors_are_held_by_whoever_loads_many(store, monkeypatch):
    monkeypatch.setattr("orchard_jit.jit.entry._MOST_HELD", 3)
    monkeypatch.setattr("orchard_jit.jit.entry._held", deque())
    entries = [publish(store, key=f"{number:020}") for number in range(6)]
    assert all(entry.hold() for entry in entries)
    assert [store.remove(entry) for entry in entries] == [True] * 3 + [False] * 3


def test_use_is_noted_once_a_day(store):
    entry = publish(store)
    manifest = entry.directory / FILE
    for seconds_ago, noted in ((3600, False), (100_000, True)):
        before = manifest.stat().st_ctime - seconds_ago
        os.utime(manifest, (before, before))
        assert entry.hold()
        assert (entry.used != before) == noted


def test_leftovers_of_the_dead_are_found_and_those_of_the_living_are_not(store):
    living, dead = store.stage("a" * 20), store.stage("b" * 20)
    elsewhere = dead.with_name(f"{'b' * 20}-another.machine-x")
    elsewhere.mkdir()
    for key in "ab":
        with lock.held(store.lock_path(key * 20), print):
            pass
    with lock.held(store.lock_path("a" * 20), print):
        assert store.leftovers() == [dead]
    assert set(store.leftovers()) == {living, dead}


def test_a_few_damaged_entries_are_kept(store):
    for _ in range(leftovers._KEPT + 3):
        damage_flip(publish(store))
        with pytest.warns(UserWarning, match="damaged"):
            store.find(SHELF, KEY)
    assert len(store.kept()) == leftovers._KEPT


def test_the_manifest_can_be_read_by_people(store):
    text = (publish(store).directory / FILE).read_text()
    assert json.loads(text)["title"] == "a kernel"
    assert text.count("\n") > 3


class TestRoots:
    def test_nothing_is_written_by_looking(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "not yet"))
        assert all(store.root != tmp_path / "not yet" for store in roots.search_stores())
        assert not (tmp_path / "not yet").exists()

    def test_prebuilt_folders_come_first_and_are_not_written(self, tmp_path, monkeypatch, empty_cache):
        for name in ("one", "two"):
            (tmp_path / name).mkdir(mode=0o755)
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", f"{tmp_path / 'one'}:{tmp_path / 'two'}:/nowhere")
        stores = roots.search_stores()
        assert [store.root for store in stores][:2] == [tmp_path / "one", tmp_path / "two"]
        assert [store.writable for store in stores] == [False, False, True]
        assert roots.writable_store().root == empty_cache

    def test_the_first_root_that_has_a_key_wins(self, tmp_path, monkeypatch, empty_cache):
        for name, content in (("one", b"first"), ("two", b"second"), ("cache", b"third")):
            (tmp_path / name).mkdir(mode=0o755, exist_ok=True)
            publish(Store(tmp_path / name, writable=True), content)
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", f"{tmp_path / 'one'}:{tmp_path / 'two'}")
        found = [store.find(SHELF, KEY) for store in roots.search_stores()]
        assert [entry.library.read_bytes() for entry in found] == [b"first", b"second", b"third"]

    def test_the_cache_is_made_for_its_owner_alone(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "a" / "cache"))
        assert roots.writable_store().root.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("reason", ["not writable", "noexec", "no folder"])
    def test_a_cache_that_is_of_no_use_is_replaced_by_a_private_folder(
        self, empty_cache, monkeypatch, reason, tmp_path
    ):
        monkeypatch.setattr(roots, "_temporary", {})
        if reason == "not writable":
            monkeypatch.setattr(roots, "_may_write", lambda root: False)
        elif reason == "noexec":
            monkeypatch.setattr(roots, "is_noexec", lambda root: root == empty_cache)
        else:
            empty_cache = tmp_path / "file" / "cache"
            empty_cache.parent.touch()
            monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(empty_cache))
        with pytest.warns(UserWarning, match=r"can't be written \(.+\); .*Set ORCHARD_JIT_CACHE_DIR"):
            store = roots.writable_store()
        assert store.root != empty_cache
        assert store.root.stat().st_mode & 0o777 == 0o700
        assert roots.writable_store().root == store.root  # one folder, one warning
        assert store.root in [s.root for s in roots.search_stores()]

    def test_no_folder_at_all_is_one_clear_error(self, empty_cache, monkeypatch):
        monkeypatch.setattr(roots, "_temporary", {})
        monkeypatch.setattr(roots, "is_noexec", lambda root: True)
        with pytest.raises(CacheError, match=r"noexec.*Set ORCHARD_JIT_CACHE_DIR"):
            roots.writable_store()

    def test_a_fork_leaves_its_parent_the_temporary_folder(self, empty_cache, monkeypatch):
        monkeypatch.setattr(roots, "_temporary", {})
        with pytest.warns(UserWarning, match="because"):
            folder = roots.temporary_store("because").root
        roots._remove_if_ours(folder, os.getpid() + 1)
        assert folder.exists()
        roots._remove_if_ours(folder, os.getpid())
        assert not folder.exists()
