"""Block sizes: the tables fit everywhere, a user's own replace them, and what can't work is refused."""

from __future__ import annotations

import itertools
import json

import pytest

from orchard_jit import backends
from orchard_jit.backends.metal import FAMILIES, family_of_chip, groupings
from orchard_jit.selection import select


def metal(kernel="forward", head_dim=64, arch="apple9", dtype="float16", **blocks):
    variant = select(
        backend="metal", kernel=kernel, dtype=dtype, head_dim=head_dim, head_dim_v=head_dim, arch=arch
    )
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


def test_a_users_own_blocks_replace_those_of_the_table(tmp_path, monkeypatch):
    own = tmp_path / "blocks.json"
    own.write_text(json.dumps({"metal-apple9-forward-f16-d64": {"columns": 64}}))
    monkeypatch.setenv("ORCHARD_JIT_BLOCKS", str(own))
    assert dict(metal().blocks)["columns"] == 64
    assert dict(metal(head_dim=32).blocks)["columns"] != 64
    own.write_text(json.dumps({"metal-apple9-forward-f16-d64": {"columns": 9}}))
    monkeypatch.setenv("ORCHARD_JIT_BLOCKS", f"{tmp_path}/./blocks.json")
    with pytest.raises(ValueError, match="block columns must be a multiple of 8"):
        metal()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": {"rows": "many"}}'])
def test_a_file_of_blocks_that_is_none_is_refused(tmp_path, monkeypatch, text):
    own = tmp_path / "blocks.json"
    own.write_text(text)
    monkeypatch.setenv("ORCHARD_JIT_BLOCKS", str(own))
    with pytest.raises(ValueError, match="must be a JSON object of block sizes by variant name"):
        metal()


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
