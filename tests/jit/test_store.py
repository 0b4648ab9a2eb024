"""Entries are whole or not there."""

from __future__ import annotations

import json

import pytest

from orchard_jit.errors import CacheError
from orchard_jit.jit import roots
from orchard_jit.jit.store import MANIFEST, Store

SHELF, KEY = "linux-x86_64", "0123456789abcdef0123"


def publish(store, content=b"library", key=KEY):
    staged = store.stage(key)
    (staged / "lib.so").write_bytes(content)
    return store.publish(staged, SHELF, key, {"title": "a kernel", "library": "lib.so"})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, writable=True)


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


def test_a_copied_and_touched_tree_is_still_a_hit(store, tmp_path_factory):
    import shutil

    publish(store)
    copy = tmp_path_factory.mktemp("copy")
    shutil.copytree(store.root, copy, dirs_exist_ok=True)
    for path in copy.rglob("*"):
        path.touch()
    assert Store(copy, writable=False).find(SHELF, KEY) is not None


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
    assert any((store.root / "v1" / ".quarantine").iterdir())
    assert publish(store) is not None  # the place is free again


def test_a_damaged_prebuilt_entry_is_passed_over_and_left_alone(store):
    damage_append(publish(store))
    with pytest.warns(UserWarning, match="damaged prebuilt entry ignored"):
        assert Store(store.root, writable=False).find(SHELF, KEY) is None
    assert not (store.root / "v1" / ".quarantine").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"library": 3}', '{"library": "lib.so"}'])
def test_a_damaged_manifest_is_not_an_entry(store, text):
    entry = publish(store)
    (entry.directory / MANIFEST).write_text(text)
    if text == '{"library": "lib.so"}':
        with pytest.warns(UserWarning, match="damaged"):
            assert store.find(SHELF, KEY) is None
    else:
        assert store.find(SHELF, KEY) is None
        assert list(store.entries()) == []
    assert publish(store) is not None


def test_an_unfinished_directory_in_the_place_is_moved_away(store):
    (store.root / "v1" / SHELF / KEY).mkdir(parents=True)
    (store.root / "v1" / SHELF / KEY / "half").write_text("written")
    assert publish(store) is not None


def test_removed_entries_are_gone(store):
    entry = publish(store)
    store.remove(entry)
    store.remove(entry)
    assert store.find(SHELF, KEY) is None
    assert not list((store.root / "v1" / ".staging").iterdir())


def test_the_manifest_can_be_read_by_people(store):
    text = (publish(store).directory / MANIFEST).read_text()
    assert json.loads(text)["title"] == "a kernel"
    assert text.count("\n") > 3


class TestRoots:
    def test_nothing_is_written_by_looking(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "not yet"))
        assert all(store.root != tmp_path / "not yet" for store in roots.search_stores())
        assert not (tmp_path / "not yet").exists()

    def test_prebuilt_folders_come_first_and_are_not_written(self, tmp_path, monkeypatch, empty_cache):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", f"{tmp_path / 'one'}:{tmp_path / 'two'}:/nowhere")
        stores = roots.search_stores()
        assert [store.root for store in stores][:2] == [tmp_path / "one", tmp_path / "two"]
        assert [store.writable for store in stores] == [False, False, True]
        assert roots.writable_store().root == empty_cache

    def test_the_cache_is_made_for_its_owner_alone(self, tmp_path, monkeypatch):
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "a" / "cache"))
        assert roots.writable_store().root.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
    def test_a_cache_that_others_can_write_is_refused(self, empty_cache, mode):
        empty_cache.chmod(mode)
        for look in (roots.search_stores, roots.writable_store):
            with pytest.raises(CacheError, match=r"may be written by others.*chmod go-w"):
                look()

    def test_a_foreign_cache_is_refused(self, empty_cache, monkeypatch):
        monkeypatch.setattr("os.geteuid", lambda: 12345)
        if empty_cache.stat().st_uid == 0:  # root's folders are trusted; make it somebody's
            import os

            os.chown(empty_cache, 54321, -1)
        with pytest.raises(CacheError, match=r"belongs to user id .*ORCHARD_JIT_CACHE_DIR"):
            roots.search_stores()

    def test_an_unwritable_cache_is_replaced_by_a_private_folder(self, empty_cache, monkeypatch):
        monkeypatch.setattr(roots, "_may_write", lambda root: False)
        with pytest.warns(UserWarning, match="can't be written"):
            store = roots.writable_store()
        assert store.root != empty_cache
        assert store.root.stat().st_mode & 0o777 == 0o700
        assert roots.writable_store().root == store.root  # one folder, one warning
        assert store.root in [s.root for s in roots.search_stores()]
