"""The CPU kernels compiled for ARM, in an emulator: numbers, bits, and the memory that they touch."""

from __future__ import annotations

import sys

import pytest
import reference
import test_features as features
import torch

import orchard_jit

from . import foreign
from .test_conformance import TOLERANCE, check, tensors

if sys.platform != "linux":
    pytest.skip("the emulator shares memory as Linux knows it", allow_module_level=True)

from software_arm import Guarded, arm_kernels, innermost_loops

LIKE_A_MAC = ("-mcpu=apple_m1",)
"""What Apple's compiler takes for granted: it is given no flag for the processor."""


@pytest.fixture(autouse=True)
def arm():
    """Calls of this test get ARM kernels."""
    with arm_kernels() as session:
        yield session
    assert session.plug_ins, "the test has called no ARM kernel"


@pytest.mark.parametrize("flags", ((), LIKE_A_MAC), ids=str)
@pytest.mark.parametrize(("head_dim", "dtype"), [(64, torch.float32), (80, torch.bfloat16)], ids=str)
def test_forward_and_gradients(arm, head_dim, dtype, flags):
    arm.flags = flags
    check(*tensors((1, 4, 77, head_dim), (1, 2, 130, head_dim), dtype, "cpu"), causal="lower_right")
    for plug_in in arm.plug_ins.values():
        products = [loop for loop in innermost_loops(plug_in.program) if loop.multiply_adds >= 16]
        assert products
        for loop in products:
            assert loop.stores == 0, "what a tile sums up stays in registers"
            assert loop.instructions < 1.8 * loop.multiply_adds


@pytest.mark.parametrize(
    ("head_dim", "head_dim_v", "dtype"),
    [(1, 128, torch.float32), (33, 7, torch.float32), (40, 40, torch.float16), (24, 24, torch.float64)],
    ids=str,
)
def test_other_head_dims_and_dtypes(head_dim, head_dim_v, dtype):
    check(*tensors((2, 2, 37, head_dim), (2, 1, 61, head_dim), dtype, "cpu", head_dim_v))


@pytest.mark.parametrize("rows", (1, 3, 4, 5, 16, 17))
def test_lengths_around_a_vector_and_a_strip(rows):
    check(*tensors((1, 1, rows, 64), (1, 1, rows + 2, 64), torch.float32, "cpu"), causal="lower_right")


def test_rows_that_see_no_key():
    foreign.check_rows_that_see_no_key(torch.float32)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_every_number_of_16_bits_is_read_and_written_exactly(dtype):
    """With a single key the output is its value."""
    value = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(1024, 1, 1, 64)
    query, key = tensors((1024, 1, 1, 64), (1024, 1, 1, 64), dtype, "cpu")[:2]
    out = orchard_jit.flash_attention(query, key, value)
    torch.testing.assert_close(out, value, rtol=0, atol=0, equal_nan=True)


FEATURES = {
    "what hides": {"causal": "upper_left", "mask": "full", "score": "hides", "lengths": "short"},
    "what is added": {"window": "both", "bias": "shared by batch", "softcap": "5", "sinks": "finite"},
    "what is drawn": {"mask": "padding", "bias": "float32", "alibi": "by head", "dropout": "0.3"},
}


@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES)
def test_feature(case):
    features.check(case, torch.float32, "cpu")


def test_features_in_bfloat16():
    case = {"causal": "lower_right", "bias": "of keys", "softcap": "5", "dropout": "0.3"}
    features.check(case, torch.bfloat16, "cpu", head_dim=64)


def test_packed_sequences():
    features.check_packed(features.PACKED[-1], torch.float32, "cpu")


@pytest.mark.parametrize(("dtype", "queries"), [(torch.float32, 1), (torch.bfloat16, 5)], ids=str)
@pytest.mark.parametrize("options", (features.DECODED[0], features.DECODED[-1]), ids=str)
def test_decoding(options, dtype, queries):
    features.test_few_queries_and_many_keys("cpu", options, dtype, queries)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_decoding_a_single_row(arm, dtype):
    """It has products of its own."""
    q, k, v = tensors((1, 2, 1, 64), (1, 2, 600, 64), dtype, "cpu")
    out = orchard_jit.flash_attention(q, k, v)
    assert [variant.kernel for variant in arm.plug_ins] == ["decode"]
    expected = reference.attention(q.double(), k.double(), v.double())[0]
    assert reference.error(out, expected) < TOLERANCE[dtype]


def test_what_lies_past_a_sequences_length_may_be_nan():
    foreign.check_nan_past_lengths(24, torch.float32)


@pytest.mark.parametrize("workers", (2, 3))
def test_any_number_of_workers_gives_the_same_bits(arm, workers):
    """They take turns, a task each."""
    inputs = tensors((2, 4, 77, 64), (2, 2, 130, 64), torch.float32, "cpu")
    inputs.append(torch.randn(inputs[0].shape))

    def ran(threads):
        assert [plug_in.workers for plug_in in arm.plug_ins.values()] == [threads, threads]

    foreign.check_threads(inputs, workers, ran, causal="lower_right")


@pytest.mark.parametrize(
    ("head_dim", "head_dim_v", "dtype"), [(33, 7, torch.float32), (40, 40, torch.float16)], ids=str
)
def test_nothing_is_read_past_the_end_of_a_tensor(head_dim, head_dim_v, dtype):
    inputs = tensors((2, 2, 37, head_dim), (2, 1, 61, head_dim), dtype, "cpu", head_dim_v)
    foreign.check_ends_of_memory([*inputs, torch.randn(2, 2, 37, head_dim_v).to(dtype)])


WRONG = "a wrong number"
MUTANTS = {
    "a constant that is a little wrong": ("exp2.h", "0.240222421f", "0.240322421f", WRONG),
    "lanes in the wrong places": ("vector.h", "I + (Second ? Step : 0)", "I + (Second ? 0 : Step)", WRONG),
    "a diagonal that is off by one": ("meeting.h", "lane_numbers() > Int", "lane_numbers() >= Int", WRONG),
    "a whole vector for a part of one": (
        *("vector.h", "(&v, from, N * sizeof(T))", "(&v, from, sizeof(v))"),
        "read where there is no memory",
    ),
    "a workspace that is too small": (
        *(
            "forward.cpp",
            "Workspace(nullptr, length, block_keys).arena.next",
            "Workspace(nullptr, 1, 1).arena.next",
        ),
        "written past its workspace",
    ),
}


def finding(inputs):
    """What is wrong with the forward kernel, if anything is."""
    try:
        out = orchard_jit.flash_attention(*inputs, causal="lower_right")
    except RuntimeError as error:
        return str(error)
    expected = reference.attention(*(x.double() for x in inputs), "lower_right")[0]
    return WRONG if reference.error(out, expected) > TOLERANCE[out.dtype] else "nothing"


@pytest.mark.parametrize(("file", "text", "replacement", "expected"), MUTANTS.values(), ids=MUTANTS)
def test_a_broken_kernel_is_found(arm, file, text, replacement, expected):
    guarded = Guarded()
    inputs = [guarded.copy(x) for x in tensors((1, 1, 37, 33), (1, 1, 61, 33), torch.float32, "cpu", 7)]
    assert finding(inputs) == "nothing"
    arm.edit(file, text, replacement)
    assert expected in finding(inputs)
