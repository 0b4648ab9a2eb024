"""Real disks that misbehave. They are mounted, which takes a superuser."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from orchard_jit.jit import library, roots

from ..jit.tiny import make_recipe


@pytest.fixture
def mount(tmp_path, monkeypatch):
    """mount(options): a cache folder on a small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setattr(roots, "_temporary", {})
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(folder / "cache"))

    def mount(options):
        words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if (
            shutil.which("mount") is None
            or subprocess.run(words, capture_output=True, check=False).returncode
        ):
            pytest.skip("mounting is not allowed here")
        roots.is_noexec.cache_clear()
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)
    roots.is_noexec.cache_clear()


@pytest.mark.parametrize("kilobytes", [4, 12, 20, 28])
def test_a_full_disk(mount, kilobytes):
    """Full at the first folder, in the middle of the sources, of the objects, of the library."""
    folder = mount(f"size={kilobytes}k")
    with pytest.warns(UserWarning, match=r"No space left|can't be kept"):
        assert library.load(make_recipe()).answer() == 42
    library._loaded.clear()
    assert library.load(make_recipe()).answer() == 42
    assert not list(folder.glob("cache/v1/.staging/*"))


def test_a_noexec_mount(mount):
    folder = mount("noexec,size=10m")
    with pytest.warns(UserWarning, match="noexec"):
        assert library.load(make_recipe()).answer() == 42
    assert not list(folder.glob("cache/v1/*/*/*.so"))


def test_a_mount_that_becomes_read_only(mount):
    folder = mount("size=10m")
    assert library.load(make_recipe()).answer() == 42
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    library._loaded.clear()
    assert library.load(make_recipe()).answer() == 42
    with pytest.warns(UserWarning, match="can't be written"):
        assert library.load(make_recipe("int answer() { return 43; }", "another one")).answer() == 43
