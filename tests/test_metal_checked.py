"""Every Metal kernel of the conformance matrix without a race, an overrun or a read of what nobody wrote,
and with the same bits whatever the order in which its lanes run."""

from __future__ import annotations

import pytest
import torch
from metal_kernels import Call, Kernels, Shape, select, wrong

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
LONG_KEYS = Shape(37, 70, heads=4, kv_heads=2)
LONG_QUERIES = Shape(70, 37, heads=2, kv_heads=1)


def check(kernel, dtype, head_dim, causal, flavour, arch="apple9"):
    """In a checked library every finding is a DispatchError."""
    variant = select(kernel, dtype, head_dim, causal=causal, arch=arch)
    kernels = Kernels(variant, flavour)
    for shape, seeds in ((LONG_KEYS, LANE_ORDERS[:1]), (LONG_QUERIES, LANE_ORDERS)):
        call = Call(shape if causal else shape.without_mask(), variant, flavour)
        first, *others = (kernels.run(call, seed) for seed in seeds)
        assert wrong(call, first) == []
        for other in others:
            assert all(same_bits(first[name], other[name]) for name in first)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a.contiguous().view(torch.uint8) == b.contiguous().view(torch.uint8)).all())


@pytest.mark.parametrize(("head_dim", "dtype", "causal", "flavour"), tuple(matrix()))
@pytest.mark.parametrize("kernel", ("forward", "backward"))
def test_every_kernel_of_the_matrix(kernel, head_dim, dtype, causal, flavour):
    check(kernel, dtype, head_dim, causal, flavour)


@pytest.mark.parametrize("head_dim", (40, 128))
@pytest.mark.parametrize("kernel", ("forward", "backward"))
def test_bfloat16_where_matrices_cannot_hold_it(kernel, head_dim):
    check(kernel, torch.bfloat16, head_dim, True, "wide", arch="apple7")
