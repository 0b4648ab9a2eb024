"""Archives of compiled libraries: what goes in comes out, and nothing that is not whole is let in."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
import tarfile

import pytest

from orchard_jit.cli import main
from orchard_jit.commands import kernels
from orchard_jit.errors import CacheError
from orchard_jit.jit import bundle, recipe
from orchard_jit.jit.store import Store
from orchard_jit.selection import select

from .jit import tiny
from .jit.tiny import make_recipe
from .test_cli import printed_json


def publish(store, body, shelf=None):
    """An entry whose library is no library: nobody loads it here."""
    made = make_recipe(body, title=f"library of {body}")
    inputs = {**made.key_inputs, "shelf": shelf or made.shelf}
    key = recipe.key_of(inputs)
    staged = store.stage(key)
    (staged / f"orchard_{key}.so").write_bytes(body.encode() * 50)
    manifest = {
        "title": made.title,
        "spec": {"variant": {}},
        "key_inputs": inputs,
        "toolchain": {},
        "library": f"orchard_{key}.so",
        "build_seconds": 1.0,
    }
    return store.publish(staged, inputs["shelf"], key, manifest)


def new_store(folder):
    folder.mkdir(mode=0o700)
    return Store(folder, writable=True)


@pytest.fixture
def source(tmp_path):
    """A store with three entries on two shelves."""
    store = new_store(tmp_path / "source")
    for body, shelf in (("one", None), ("two", None), ("three", "torch9-linux-mips")):
        publish(store, body, shelf)
    return store


@pytest.fixture
def target(tmp_path):
    return new_store(tmp_path / "target")


@pytest.fixture
def archive(source, tmp_path):
    path = tmp_path / "bundle.tar.gz"
    bundle.pack(list(source.entries()), path)
    return path


def unpack(archive, store):
    return bundle.unpack(archive, store, pytest.fail)


def contents(store):
    """Names and bytes of all entries' libraries and manifests."""
    return {(e.shelf, e.key): (e.library.read_bytes(), dict(e.manifest)) for e in store.entries()}


def test_what_goes_in_comes_out(source, target, archive):
    arrivals = unpack(archive, target)
    assert [arrival.new for arrival in arrivals] == [True] * 3
    assert contents(target) == contents(source)
    assert list(target.damaged()) == []
    assert target.leftovers() == []


def test_the_same_entries_make_the_same_bytes(target, archive, tmp_path):
    unpack(archive, target)
    again = tmp_path / "again.tar.gz"
    bundle.pack(list(reversed(list(target.entries()))), again)
    assert again.read_bytes() == archive.read_bytes()


def test_an_archive_is_never_overwritten(source, archive):
    before = archive.read_bytes()
    with pytest.raises(FileExistsError):
        bundle.pack(list(source.entries())[:1], archive)
    assert archive.read_bytes() == before


def test_an_archive_that_can_not_be_written_is_not_left_half(source, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    with pytest.raises(OSError, match="disk is full"):
        bundle.pack(list(source.entries()), tmp_path / "new.tar.gz")
    assert not (tmp_path / "new.tar.gz").exists()


def test_what_is_there_stays_as_it_is(source, target, archive):
    first = next(source.entries())
    there = publish(target, first.title.removeprefix("library of "))
    (there.directory / "mine").touch()
    arrivals = unpack(archive, target)
    assert sorted(arrival.new for arrival in arrivals) == [False, True, True]
    assert (there.directory / "mine").exists()
    assert not any(arrival.new for arrival in unpack(archive, target))


def test_a_damaged_entry_gives_way(target, archive):
    (entry, *_) = [arrival.entry for arrival in unpack(archive, target)]
    found = target.find(entry.shelf, entry.key)
    found.library.write_bytes(b"rubbish")
    with pytest.warns(UserWarning, match="set aside"):
        arrivals = unpack(archive, target)
    assert sum(arrival.new for arrival in arrivals) == 1
    assert list(target.damaged()) == []


def test_a_byte_that_flips_anywhere_is_found_or_means_nothing(archive, source, target):
    """As the time in gzip's header, or its checksum, which nobody needs where there are better ones."""
    whole = bytearray(archive.read_bytes())
    tried = list(range(0, len(whole), 7))
    found = 0
    for place in tried:
        whole[place] ^= 0x20
        archive.write_bytes(whole)
        whole[place] ^= 0x20
        try:
            unpack(archive, target)
        except CacheError:
            found += 1
            assert contents(target) == {}
        else:
            assert contents(target) == contents(source)
            for entry in target.entries():
                target.remove(entry)
    assert found > 0.9 * len(tried)


def test_a_byte_that_flips_below_the_compression_is_found(archive, target):
    """What gzip would find is taken away, so that it is the index that has to."""
    plain = bytearray(gzip.decompress(archive.read_bytes()))
    with tarfile.open(archive) as tar:
        used = [
            place for member in tar for place in range(member.offset_data, member.offset_data + member.size)
        ]
    for place in used[:: max(1, len(used) // 150)]:
        plain[place] ^= 0x01
        archive.write_bytes(gzip.compress(bytes(plain), 1))
        plain[place] ^= 0x01
        with pytest.raises(CacheError):
            unpack(archive, target)
        assert contents(target) == {}


def test_an_archive_that_ends_early_is_found(archive, target):
    """Its last entry is in the last tenth; behind it are but padding and a checksum."""
    whole = archive.read_bytes()
    for length in [0, 1, 20, *range(100, len(whole) * 9 // 10, 97)]:
        archive.write_bytes(whole[:length])
        with pytest.raises(CacheError):
            unpack(archive, target)
        assert contents(target) == {}
    assert target.leftovers() == []


def member(name, content=b"", **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def repacked(archive, change):
    """The archive with other members: `change` gets those that it has, the index first."""
    with tarfile.open(archive) as tar:
        members = [member(each.name, tar.extractfile(each).read()) for each in tar]
    with tarfile.open(archive, "w:gz") as tar:
        for info, content in change(members):
            tar.addfile(info, io.BytesIO(content))


def index_with(members, **changed):
    index = json.loads(members[0][1])
    index["members"].update(changed)
    return [member(bundle.INDEX, json.dumps(index).encode()), *members[1:]]


def with_evil_name(name):
    described = {"size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}
    return lambda members: [*index_with(members, **{name: described}), member(name, b"x")]


HOSTILE = {
    "a file beside": (lambda m: [*m, member("v1/extra", b"x")], "not in its index"),
    "a file twice": (lambda m: [*m, m[-1]], "not in its index, or it comes twice"),
    "a file too few": (lambda m: m[:-1], "incomplete"),
    "another order": (lambda m: [m[1], m[0], *m[2:]], "does not begin with bundle.json"),
    "a link": (
        lambda m: [*m[:-1], member(m[-1][0].name, type=tarfile.SYMTYPE, linkname="/etc/passwd")],
        "is no file of",
    ),
    "a hard link": (
        lambda m: [*m[:-1], member(m[-1][0].name, type=tarfile.LNKTYPE, linkname=m[1][0].name)],
        "is no file of",
    ),
    "a device": (lambda m: [*m[:-1], member(m[-1][0].name, type=tarfile.CHRTYPE)], "is no file of"),
    "another content": (
        lambda m: [*m[:-1], member(m[-1][0].name, bytes(len(m[-1][1])))],
        "another SHA-256",
    ),
    "a way out": (with_evil_name("v1/../../evil"), "is no file of an entry"),
    "a way to the root": (with_evil_name("/tmp/evil"), "is no file of an entry"),
    "a hidden folder": (with_evil_name("v1/.locks/00/evil"), "is no file of an entry"),
    "a backslash": (with_evil_name("v1/a/0\\..\\b/evil"), "is no file of an entry"),
    "a bomb": (
        lambda m: index_with(m, **{m[-1][0].name: {"size": 10**12, "sha256": ""}}),
        "1000000000000 bytes",
    ),
    "no index": (lambda m: m[1:], "does not begin with bundle.json"),
    "an index of nothing": (lambda m: [member(bundle.INDEX, b"[]"), *m[1:]], "can't be read"),
    "another format": (
        lambda m: [member(bundle.INDEX, b'{"format": 2, "members": {}}')],
        "this version reads 1",
    ),
    "nothing": (lambda m: [], "does not begin with bundle.json"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_no_bundle_has_is_refused_and_nothing_is_published(what, archive, target, tmp_path):
    change, message = HOSTILE[what]
    repacked(archive, change)
    with pytest.raises(CacheError, match=message):
        unpack(archive, target)
    assert contents(target) == {}
    assert target.leftovers() == []
    assert not (tmp_path / "evil").exists()


def test_an_entry_is_not_taken_for_another(source, target, tmp_path):
    """A manifest that lies about its key: moved to another key's place, with an index that agrees."""
    first, second = list(source.entries())[:2]
    manifest = json.loads((first.directory / "manifest.json").read_text())
    manifest["key"] = second.key
    (second.directory / "manifest.json").write_text(json.dumps(manifest))
    (second.directory / manifest["library"]).write_bytes(first.library.read_bytes())
    path = tmp_path / "lie.tar.gz"
    bundle.pack([entry for entry in source.entries() if entry.key == second.key], path)
    with pytest.raises(CacheError, match="made of what makes another key"):
        unpack(path, target)
    assert contents(target) == {}


def test_other_files_are_no_bundles(tmp_path, target):
    path = tmp_path / "text.tar.gz"
    path.write_text("hello")
    with pytest.raises(CacheError, match="is no bundle, or a damaged one"):
        unpack(path, target)
    with pytest.raises(CacheError, match=r"is called \*.tar.gz or"):
        unpack(tmp_path / "bundle.zip", target)


def test_zstd_where_python_has_it(source, target, tmp_path, monkeypatch):
    path = tmp_path / "bundle.tar.zst"
    with contextlib.suppress(CacheError):
        bundle.pack(list(source.entries()), path)
        unpack(path, target)
        assert contents(target) == contents(source)
        path.unlink()
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CacheError, match=r"pip install zstandard, or use \.tar\.gz"):
        bundle.pack(list(source.entries()), path)
    assert not path.exists()


@pytest.fixture
def cache(source, monkeypatch):
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(source.root))


def test_export_takes_names_and_shelves(cache, tmp_path, capsys):
    def exported(name, *words):
        return [
            entry["name"] for entry in printed_json(capsys, "export", str(tmp_path / name), *words)["entries"]
        ]

    assert exported("a.tar.gz") == ["library of one", "library of two", "library of three"]
    assert exported("b.tar.gz", "* of t*") == ["library of two", "library of three"]
    assert exported("c.tar.gz", "--shelf", "torch9*") == ["library of three"]
    key = printed_json(capsys, "export", str(tmp_path / "d.tar.gz"), "*one")["entries"][0]["key"]
    assert exported("e.tar.gz", key[:8]) == ["library of one"]
    assert main(["export", str(tmp_path / "f.tar.gz"), "nothing*"]) == 1
    assert "no entry has the name 'nothing*'" in capsys.readouterr().err
    assert not (tmp_path / "f.tar.gz").exists()


def test_export_takes_a_file_of_kernels(empty_cache, tmp_path, capsys):
    store = Store(empty_cache, writable=True)
    wanted, other = (
        select(backend="cpu", kernel=kernel, dtype="float32", head_dim=64, head_dim_v=64)
        for kernel in ("forward", "backward")
    )
    made = [recipe.for_variant(wanted), recipe.for_variant(other), recipe.for_binding()]
    for each in made[:2]:
        tiny.publish(store, key=each.key, shelf=each.shelf, title=each.title)
    kernels.append(tmp_path / "kernels.toml", [wanted])
    only = ("export", str(tmp_path / "k.tar.gz"), "--only", str(tmp_path / "kernels.toml"))
    assert main([*only]) == 1
    assert f"not compiled: {made[2].title}; run: orchard-jit prebuild {tmp_path}" in capsys.readouterr().err
    tiny.publish(store, key=made[2].key, shelf=made[2].shelf, title=made[2].title)
    exported = printed_json(capsys, *only)["entries"]
    assert {entry["key"] for entry in exported} == {made[0].key, made[2].key}
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path / "l.tar.gz"), "*-f32-*", *only[2:]])
    assert "says which entries; leave out *-f32-*" in capsys.readouterr().err


def test_export_does_not_pass_damage_on(cache, source, tmp_path, capsys):
    next(source.entries()).library.write_bytes(b"rubbish")
    assert main(["export", str(tmp_path / "a.tar.gz")]) == 1
    assert "an entry is damaged" in capsys.readouterr().err
    assert not (tmp_path / "a.tar.gz").exists()


def test_import_says_what_it_did(cache, archive, target, tmp_path, capsys, monkeypatch):
    assert main(["import", str(archive), "--into", str(tmp_path / "new" / "folder")]) == 0
    out = capsys.readouterr().out
    assert out.count("\nimported ") + out.startswith("imported ") == 3
    assert f"3 libraries: 3 imported, 0 present already, in {tmp_path}/new/folder\n" in out
    assert "1 of them not for this machine" in out
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(target.root))
    entries = printed_json(capsys, "import", str(archive))["entries"]
    assert [entry["new"] for entry in entries] == [True] * 3
    assert main(["import", str(archive)]) == 0
    assert "0 imported, 3 present already" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "missing.tar.gz")]) == 1
    assert "missing.tar.gz" in capsys.readouterr().err
