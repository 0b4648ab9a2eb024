"""Whoever can write to the cache can run code as us: who may is looked at, down to each file."""

from __future__ import annotations

import os

import pytest

from orchard_jit.errors import CacheError
from orchard_jit.jit import lock, roots
from orchard_jit.jit.manifest import FILE
from orchard_jit.jit.store import Store

from .tiny import KEY, SHELF, publish

STRANGER = 54321
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can give files away")


@pytest.fixture
def store(empty_cache):
    return Store(empty_cache, writable=True)


@pytest.fixture
def as_user(monkeypatch):
    """The superuser trusts his own files; be somebody else, whose files all of ours are then not."""
    monkeypatch.setattr("os.geteuid", lambda: 12345)


class TestTheRoot:
    @pytest.mark.parametrize("mode", [0o770, 0o777, 0o702])
    def test_that_others_can_write(self, empty_cache, mode):
        empty_cache.chmod(mode)
        for look in (roots.search_stores, roots.writable_store):
            with pytest.raises(CacheError, match=r"may be written by others.*chmod -R go-w"):
                look()

    @as_root
    def test_of_somebody_else(self, empty_cache, as_user):
        os.chown(empty_cache, STRANGER, -1)
        with pytest.raises(CacheError, match=r"belongs to user id 54321.*ORCHARD_JIT_CACHE_DIR"):
            roots.search_stores()

    @as_root
    def test_behind_somebody_elses_link(self, empty_cache, tmp_path, monkeypatch):
        link = tmp_path / "link"
        link.symlink_to(empty_cache)
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(link))
        assert roots.writable_store().root == link  # a link of our own leads to another disk
        os.chown(link, STRANGER, -1, follow_symlinks=False)
        with pytest.raises(CacheError, match="belongs to user id 54321"):
            roots.writable_store()

    def test_a_prebuilt_folder_may_be_somebody_elses_but_not_everybodys(self, tmp_path, monkeypatch):
        folder = tmp_path / "prebuilt"
        folder.mkdir()
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(folder))
        folder.chmod(0o775)
        assert folder in [store.root for store in roots.search_stores()]
        folder.chmod(0o777)
        with pytest.raises(CacheError, match="may be written by others"):
            roots.search_stores()


@pytest.mark.parametrize("folder", ["v1", f"v1/{SHELF}"])
def test_inner_folders(store, folder):
    publish(store)
    (store.root / folder).chmod(0o777)
    with pytest.raises(CacheError, match=r"may be written by others \(mode 777\).*chmod -R go-w"):
        store.find(SHELF, KEY)


@pytest.mark.parametrize("name", [".locks", ".staging"])
def test_folders_that_are_written(store, tmp_path, name):
    publish(store)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = store.root / "v1" / name
    if place.exists():
        place.rmdir()
    place.symlink_to(elsewhere)
    with pytest.raises(CacheError, match="is a symbolic link"):
        store.lock_path(KEY) if name == ".locks" else store.stage(KEY)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("file", ["", FILE, "lib.so"])
@pytest.mark.parametrize("attack", ["writable", "link", "owner"])
def test_an_entry_that_others_could_have_made_is_set_aside(store, tmp_path, attack, file):
    entry = publish(store)
    path = entry.directory / file if file else entry.directory
    if attack == "writable":
        path.chmod(0o777)
    elif attack == "link":
        path.symlink_to(path.rename(tmp_path / "elsewhere"))
    elif os.geteuid() == 0:
        os.chown(path, STRANGER, -1)
    else:
        pytest.skip("only the superuser can give files away")
    with pytest.warns(UserWarning, match=r"set aside and rebuilt: .*(others|symbolic link|user id 54321)"):
        assert store.find(SHELF, KEY) is None
    assert publish(store) is not None
    assert store.find(SHELF, KEY) is not None


def test_a_lock_that_is_a_link_is_not_followed(store, tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    store.lock_path(KEY).symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"), lock.held(store.lock_path(KEY), print):
        pass
    assert target.read_text() == "precious"
