"""Every Metal kernel of the conformance matrix without a race, an overrun or a read of what nobody wrote,
and with the same bits whatever the order in which its lanes run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from metal_calls import Call, Shape, wrong
from metal_kernels import Kernels, select

from orchard_jit.variant import has_feature

HEAD_DIMS = (16, 32, 40, 64, 72, 80, 96, 128, 160, 256)


def matrix():
    """Head dim, dtype, causal, flavour. Compiling is all of the time, so what is alike takes turns.

    half and bfloat move the same bytes in the same blocks: for each head dim one takes each mask. Wide and
    narrow kernels differ in load_chunk and store_chunk alone.
    """
    for i, head_dim in enumerate(HEAD_DIMS):
        for causal in (False, True):
            dtype = torch.float16 if (i + causal) % 2 == 0 else torch.bfloat16
            flavours = ("wide", "narrow") if (i // 2 + causal) % 2 == 0 else ("narrow", "wide")
            yield head_dim, torch.float32, causal, flavours[0]
            yield head_dim, dtype, causal, flavours[1]


LANE_ORDERS = range(5)

# Ragged ends, several blocks each way, grouped heads. The second has two threadgroups of queries, and causal
# (lower right) queries without keys.
LONG_KEYS = Shape(37, 70, heads=4, kv_heads=2, left=9, right=4)
LONG_QUERIES = Shape(70, 37, heads=2, kv_heads=1, left=9, right=4)
CAUSAL = tuple(replace(shape, right=0) for shape in (LONG_KEYS, LONG_QUERIES))

# Features alone and together. Head dims of both kinds: rows of one simdgroup, and of teams, of which a
# threadgroup has one or two. The dtypes take turns.
FEATURES = (
    ("window sinks", 40, torch.float32, "wide"),
    ("varlen causal", 128, torch.bfloat16, "narrow"),
    ("varlen window dropout", 40, torch.float16, "narrow"),
    ("lengths", 128, torch.float32, "narrow"),
    ("lengths causal bias sinks", 40, torch.bfloat16, "wide"),
    ("mask", 128, torch.float16, "wide"),
    ("mask window bias_f32 dropout", 160, torch.float32, "wide"),
    ("bias", 72, torch.float16, "narrow"),
    ("dropout", 256, torch.bfloat16, "wide"),
    ("score causal", 128, torch.float32, "wide"),
    ("score bias dropout lengths", 40, torch.bfloat16, "narrow"),
)


def check(kernel, dtype, head_dim, features, flavour, shapes=CAUSAL, arch="apple9"):
    """In a checked library every finding is a DispatchError."""
    variant = select(kernel, dtype, head_dim, features=features, arch=arch)
    kernels = Kernels(variant, flavour)
    for shape, seeds in zip(shapes, (LANE_ORDERS[:1], LANE_ORDERS), strict=True):
        call = Call(shape, variant, flavour)
        first, *others = (kernels.run(call, seed) for seed in seeds)
        assert wrong(call, first) == []
        for other in others:
            assert all(same_bits(first[name], other[name]) for name in first)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a.contiguous().view(torch.uint8) == b.contiguous().view(torch.uint8)).all())


@pytest.mark.parametrize(("head_dim", "dtype", "causal", "flavour"), tuple(matrix()))
@pytest.mark.parametrize("kernel", ("forward", "backward"))
def test_every_kernel_of_the_matrix(kernel, head_dim, dtype, causal, flavour):
    check(kernel, dtype, head_dim, ("causal",) if causal else (), flavour)


@pytest.mark.parametrize(("features", "head_dim", "dtype", "flavour"), FEATURES)
@pytest.mark.parametrize("kernel", ("forward", "backward"))
def test_features(kernel, features, head_dim, dtype, flavour):
    names = {name for name in features.split() if name == "score" or has_feature(kernel, name)}
    if kernel == "backward" and names & {"bias", "bias_f32"}:
        names.add("bias_grad")
    # The second shape has two batches, of which one is empty, and bias and mask that some dimensions share.
    shapes = (LONG_KEYS, replace(LONG_QUERIES, batch=2, key_lengths=(30, 0), broadcast=(1, 2)))
    check(kernel, dtype, head_dim, names, flavour, shapes)


@pytest.mark.parametrize(
    ("features", "head_dim", "dtype", "flavour"),
    (
        ("", 64, torch.float32, "narrow"),
        ("causal lengths", 40, torch.float16, "wide"),
        ("window sinks", 160, torch.bfloat16, "narrow"),
        ("score causal", 264, torch.float16, "wide"),
    ),
)
def test_decode(features, head_dim, dtype, flavour):
    """One tile of queries and several; keys for all parts, and fewer than that."""
    shapes = (
        Shape(3, 600, heads=4, kv_heads=1, left=200, right=4),
        Shape(5, 300, batch=2, heads=2, kv_heads=1, left=90, key_lengths=(30, 0)),
    )
    check("decode", dtype, head_dim, features.split(), flavour, shapes)


@pytest.mark.parametrize("head_dim", (40, 128))
@pytest.mark.parametrize("kernel", ("forward", "backward"))
def test_bfloat16_where_matrices_cannot_hold_it(kernel, head_dim):
    check(kernel, torch.bfloat16, head_dim, ("causal",), "wide", arch="apple7")
