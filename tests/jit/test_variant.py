"""What a variant is, and which one a call gets."""

from __future__ import annotations

import dataclasses
import json

import pytest

from orchard_jit.selection import select
from orchard_jit.variant import Variant

VARIANT = Variant("cpu", "x86-64-v3", "forward", "bfloat16", 64, 32, ("causal",), (("q", 64), ("k", 96)))


def test_it_can_be_read_hashed_and_compared():
    assert VARIANT.name == "cpu-x86-64-v3-forward-bf16-d64v32-causal"
    assert str(VARIANT) == "cpu-x86-64-v3-forward-bf16-d64v32-causal [k=96 q=64]"
    assert len({VARIANT, dataclasses.replace(VARIANT), VARIANT.with_blocks({"q": 64, "k": 96})}) == 1


def test_it_comes_back_from_json():
    assert Variant.from_json(json.loads(json.dumps(VARIANT.to_json()))) == VARIANT


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backend", "cuda", "backend must be one of cpu, metal; got 'cuda'"),
        ("kernel", "sideways", "kernel must be one of forward, backward"),
        ("dtype", "int8", "dtype must be one of float32"),
        ("features", ("telepathy",), "features must be one of causal, .*; got 'telepathy'"),
        ("head_dim", 0, "head_dim must be an integer from 1 to 512, got 0"),
        ("head_dim_v", 513, "head_dim_v must be an integer from 1 to 512, got 513"),
        ("head_dim", 64.0, "head_dim must be an integer"),
        ("blocks", (("q", 0),), "block q must be a positive integer, got 0"),
    ],
)
def test_it_cannot_be_nonsense(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(VARIANT, **{field: value})


def test_the_same_call_always_gets_the_same_variant():
    wish = {"backend": "cpu", "kernel": "forward", "dtype": "float32", "head_dim": 64, "head_dim_v": 64}
    assert select(**wish, features=["causal"]) == select(**wish, features=("causal",))
    assert select(**wish, arch="x86-64").arch == "x86-64"
    with pytest.raises(ValueError, match="arch must be one of x86-64-v4"):
        select(**wish, arch="pdp11")
