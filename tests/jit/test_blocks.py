"""Block sizes: the shipped ones fit everywhere, files replace them, and what can't work is refused."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from orchard_jit import backends
from orchard_jit.backends.metal import FAMILIES, family_of_chip, groupings
from orchard_jit.blocks import origin, shipped_table, tuned_path
from orchard_jit.blocks.forced import written
from orchard_jit.blocks.table import Table, fits
from orchard_jit.errors import BlocksError
from orchard_jit.jit.missing import prebuild_command
from orchard_jit.selection import select
from orchard_jit.variant import Variant


def selected(kernel="forward", head_dim=64, arch="apple9", dtype="float16", blocks=""):
    return select(
        backend="metal",
        kernel=kernel,
        dtype=dtype,
        head_dim=head_dim,
        head_dim_v=head_dim,
        arch=arch,
        blocks=blocks,
    )


def metal(kernel="forward", head_dim=64, arch="apple9", dtype="float16", **blocks):
    variant = selected(kernel, head_dim, arch, dtype)
    return variant.with_blocks({**dict(variant.blocks), **blocks})


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_metal_table_fits_every_family_dtype_and_head_dim(arch):
    for kernel, dtype, head_dim in itertools.product(
        ("forward", "backward"),
        ("float32", "float16", "bfloat16"),
        (1, 8, 32, 33, 64, 80, 81, 96, 128, 129, 256, 512),
    ):
        for grouping in groupings(metal(kernel, head_dim, arch, dtype)).values():
            assert grouping.threadgroup_bytes <= 32 * 1024
            assert grouping.threads <= 1024


def test_bfloat_is_computed_as_float_on_the_oldest_families():
    old, new = (metal(dtype="bfloat16", head_dim=80, arch=arch) for arch in ("apple8", "apple9"))
    assert old.blocks == metal(dtype="float32", head_dim=80).blocks
    assert new.blocks == metal(dtype="float16", head_dim=80).blocks


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"rows": 12}, "block rows must be a multiple of 8 up to 64, got 12"),
        ({"rows": 72}, "block rows must be a multiple of 8 up to 64, got 72"),
        ({"columns": 256}, "block columns must be a multiple of 8 up to 128, got 256"),
        ({"split": 3}, "block simdgroups must be a multiple of split, got 4 and 3"),
        ({"simdgroups": 64}, "block simdgroups=64 makes 2048 threads; a threadgroup has 1024 at most"),
        (
            {"split": 4, "columns": 128, "rows": 64},
            "need 262144 bytes of threadgroup memory; there are 32768",
        ),
    ],
)
def test_a_metal_choice_that_cannot_work_is_refused_with_the_numbers(blocks, message):
    with pytest.raises(ValueError, match=message):
        backends.get("metal").check(metal(**blocks))


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"q": 100}, "block q must be a multiple of 64 up to 1024, got 100"),
        ({"k": 2000}, "block k must be 1 to 1024, got 2000"),
        ({"rows": 8}, "a cpu kernel has the blocks q and k"),
    ],
)
def test_a_cpu_choice_that_cannot_work_is_refused(blocks, message):
    variant = select(backend="cpu", kernel="forward", dtype="float32", head_dim=64, head_dim_v=64)
    with pytest.raises(ValueError, match=message):
        backends.get("cpu").check(variant.with_blocks({**dict(variant.blocks), **blocks}))


def entry(**conditions):
    return {"backend": "metal", "kernel": "forward", "blocks": {"columns": 64}, **conditions}


def write(path, *entries):
    path.write_text(json.dumps({"format": 1, "entries": list(entries)}))
    return path


def columns(**options):
    return dict(metal(**options).blocks)["columns"]


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    path = tmp_path / "tuned.json"
    monkeypatch.setenv("ORCHARD_JIT_TUNED", str(path))
    return path


@pytest.fixture
def own(tmp_path, monkeypatch):
    path = tmp_path / "own.json"
    monkeypatch.setenv("ORCHARD_JIT_BLOCKS", str(path))
    return path


@pytest.mark.parametrize("backend", ["cpu", "metal"])
def test_every_variant_is_of_exactly_one_shipped_entry(backend):
    device = backends.get(backend)
    for arch, dtype, kernel, head_dim in itertools.product(
        device.archs, device.dtypes, ("forward", "backward"), (1, 32, 33, 128, 129, 512)
    ):
        variant = Variant(backend, arch, kernel, dtype, head_dim, head_dim)
        assert sum(fits(entry, variant) for entry in shipped_table(backend).entries) == 1


@pytest.mark.parametrize(
    ("condition", "value", "other"),
    [
        ("arch", ["apple8", "apple9"], "apple7"),
        ("device", "Apple M3", "Apple M1"),
        ("kernel", ["forward", "decode"], "backward"),
        ("dtype", "float16", "bfloat16"),
        ("operand_bits", 16, 32),
        ("head_dim", [33, 64], [65, 80]),
        ("features", [], ["causal"]),
    ],
)
def test_an_entry_holds_where_all_its_conditions_do(condition, value, other, own):
    write(own, entry(**{condition: value}))
    assert columns() == 64
    write(own, entry(**{condition: other}))
    assert columns() == 16


def test_of_several_entries_the_first_one_counts(own):
    write(own, entry(dtype="bfloat16", blocks={"columns": 8}), entry(), entry(blocks={"columns": 16}))
    assert columns() == 64


def test_the_users_file_counts_more_than_the_tuned_one_and_that_more_than_the_shipped_one(tuned, own):
    write(own)
    assert columns() == 16
    write(tuned, entry(blocks={"columns": 24, "rows": 8}))
    assert columns() == 24
    write(own, entry())
    assert (columns(), dict(metal().blocks)["rows"]) == (64, 8)
    forced = selected(blocks=written("forward", {"columns": 48}))
    assert dict(forced.blocks) == {"columns": 48, "rows": 8, "simdgroups": 4, "split": 1}
    assert [origin(metal()), origin(forced)] == ["ORCHARD_JIT_BLOCKS", "specialize"]


def test_sizes_that_cannot_work_are_refused_wherever_they_come_from(own):
    write(own, entry(blocks={"columns": 9}))
    with pytest.raises(ValueError, match="block columns must be a multiple of 8"):
        metal()


def test_without_a_variable_the_tuned_file_is_among_the_users_settings(monkeypatch):
    monkeypatch.delenv("ORCHARD_JIT_TUNED")
    assert tuned_path().parts[-2:] == ("orchard_jit", "tuned.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", 'it must be an object with "format": 1'),
        ('{"format": 2, "entries": []}', '"format": 1'),
        ('{"format": 1}', '"entries" must be a list'),
        ('{"format": 1, "entries": [3]}', "entry 1: it must be an object"),
        ('{"format": 1, "entries": [{"blocks": {"q": "many"}}]}', "positive integers by block name"),
        ('{"format": 1, "entries": [{"blocks": {"q": true}}]}', "positive integers by block name"),
        ('{"format": 1, "entries": [{"blocks": {}, "kernal": "forward"}]}', "nothing reads kernal"),
        ('{"format": 1, "entries": [{"blocks": {}, "head_dim": 64}]}', r"must be \[first, last\], got 64"),
        ('{"format": 1, "entries": [{"blocks": {}, "features": "causal"}]}', "must be a list of names"),
    ],
)
def test_a_file_that_is_none_is_an_error_that_names_it(text, message, tuned):
    tuned.write_text(text)
    with pytest.raises(BlocksError, match=message) as refused:
        metal()
    assert str(tuned) in str(refused.value)


def test_a_users_file_must_exist(own):
    with pytest.raises(BlocksError, match="No such file"):
        metal()


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "tuned.json"
    Table([entry()]).write(path)
    assert list(Table.read(path).entries) == [entry()]

    def fail(descriptor):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk is full"):
        Table([]).write(path)
    assert list(Table.read(path).entries) == [entry()]
    assert [each.name for each in path.parent.iterdir()] == ["tuned.json"]


def test_an_entry_replaces_the_one_of_the_same_conditions_and_length():
    short, long = entry(length=[1, 512]), entry(length=[513, 1024])
    better = {**short, "blocks": {"columns": 8}, "reason": "faster"}
    table = Table([long, short]).with_first(better)
    assert list(table.entries) == [better, long]
    assert list(table.without(short).entries) == [long]


def test_the_command_that_prebuilds_a_variant_names_blocks_that_are_not_shipped():
    assert "--blocks" not in prebuild_command(metal())
    assert "--kernel forward --blocks columns=8,rows=16" in prebuild_command(metal(columns=8))


@pytest.mark.parametrize(
    ("chip", "family"),
    [
        ("Apple M1", "apple7"),
        ("Apple M2 Ultra", "apple8"),
        ("Apple M4 Pro", "apple9"),
        ("Apple M7", "apple10"),
    ],
)
def test_the_family_follows_from_the_chip(chip, family):
    assert family_of_chip(chip) == family


def test_a_chip_that_is_none_of_apples_is_refused():
    with pytest.raises(NotImplementedError, match="for Apple M1 and later; this chip is 'Intel Core i9'"):
        family_of_chip("Intel Core i9")
