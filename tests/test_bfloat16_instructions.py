"""The CPU kernels that multiply bfloat16 by AVX-512's pairs and by AMX's tiles, which few machines have.

In software on any x86-64 processor; where the instructions are at hand, also these against the software.
"""

from __future__ import annotations

import platform
import sys

import pytest
import test_features as features
import torch

import orchard_jit
from orchard_jit.backends.cpu import CpuBackend

from . import foreign
from .foreign import results
from .test_conformance import check, tensors

if sys.platform != "linux" or platform.machine() != "x86_64":
    pytest.skip("in software they are still kernels for x86-64", allow_module_level=True)

from software_x86 import ARCHS, TILES, kernels_for


@pytest.fixture(params=ARCHS)
def arch(request):
    """Calls of this test get kernels for that level."""
    with kernels_for(request.param) as asked:
        yield request.param
    assert {variant.arch for variant in asked} == {request.param}


@pytest.fixture
def tiles():
    """Calls of this test get AMX's kernels."""
    with kernels_for(TILES) as asked:
        yield asked
    assert asked


def bfloat16(query, key, head_dim_v=None):
    return tensors(query, key, torch.bfloat16, "cpu", head_dim_v)


@pytest.mark.parametrize("head_dim", (64, 67))
@pytest.mark.parametrize("causal", ("none", "lower_right"))
def test_forward_and_gradients(arch, head_dim, causal):
    check(*bfloat16((1, 4, 77, head_dim), (1, 2, 230, head_dim)), causal=causal)


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(1, 128), (40, 24), (256, 256)])
def test_other_head_dims(tiles, head_dim, head_dim_v):
    check(*bfloat16((2, 2, 37, head_dim), (2, 1, 61, head_dim), head_dim_v))


@pytest.mark.parametrize("rows", (1, 15, 16, 17, 32, 33, 64, 65, 130))
def test_lengths_around_a_tile_and_a_strip(tiles, rows):
    check(*bfloat16((1, 1, rows, 64), (1, 1, rows + 2, 64)), causal="lower_right")


@pytest.mark.parametrize("options", ({"causal": "lower_right"}, {"window": (70, 5)}), ids=str)
def test_blocks_of_keys_that_end_within_a_tile(tiles, options):
    """Strips of one task meet different parts of them, which their gradients are gathered from."""
    inputs = bfloat16((1, 1, 150, 64), (1, 1, 150, 64))
    with orchard_jit.specialize(block_q=128, block_k=40):
        found = results(*inputs, **options)
    for ours, theirs in zip(found, results(*inputs, **options), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6)


def test_a_block_that_is_masked_for_the_strip_in_the_middle(tiles):
    """Its part counts for nothing, whatever the block before has left there."""
    inputs = bfloat16((1, 1, 192, 64), (1, 1, 400, 64))
    mask = torch.ones(192, 400, dtype=torch.bool)
    mask[64:128, 192:384] = False
    leaves = [x.double().requires_grad_() for x in inputs]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, attn_mask=mask)
    expected = out, *torch.autograd.grad(out, leaves, torch.ones_like(out))
    found = results(*inputs, mask=mask)
    for ours, theirs in zip((found[0], *found[2:]), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-2, atol=2e-2)


def test_a_single_key_has_no_gradient(tiles):
    """What is subtracted from the products is summed up in their order."""
    q, k, v = bfloat16((1, 2, 40, 64), (1, 2, 1, 64))
    grads = results(q, k, v)[2:]
    assert not grads[0].any()
    assert not grads[1].any()


def test_rows_that_see_no_key(tiles):
    foreign.check_rows_that_see_no_key(torch.bfloat16)


def test_scores_far_below_zero(tiles):
    """What fills up a tile has the score 0, and must not count as the largest."""
    q, k, v = bfloat16((1, 1, 20, 64), (1, 1, 19, 64))
    q, k = q.abs() * 8, -k.abs() * 8
    out = orchard_jit.flash_attention(q, k, v)
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)


FEATURES = {
    "what hides": {"causal": "upper_left", "mask": "full", "score": "hides", "lengths": "short"},
    "what is added": {"window": "both", "bias": "shared by batch", "softcap": "5", "sinks": "finite"},
    "what is drawn": {"window": "left", "mask": "padding", "bias": "float32", "dropout": "0.3"},
}


@pytest.mark.parametrize("case", FEATURES.values(), ids=FEATURES)
def test_feature(tiles, case):
    features.check(case, torch.bfloat16, "cpu", head_dim=64)


def test_packed_sequences(tiles):
    features.check_packed(features.PACKED[-1], torch.bfloat16, "cpu")


def test_what_lies_past_a_sequences_length_may_be_nan(tiles):
    foreign.check_nan_past_lengths(64, torch.bfloat16)


@pytest.mark.parametrize("options", ({"causal": "lower_right"}, {"window": (101, 5)}), ids=str)
def test_any_number_of_threads_gives_the_same_bits(tiles, options):
    """Each of them has tile registers of its own to prepare, and fewer queries at once."""
    foreign.check_threads(bfloat16((1, 2, 300, 64), (1, 2, 300, 64)), 3, **options)


@pytest.mark.parametrize("head_dim", (64, 67))
def test_nothing_is_read_past_the_end_of_a_tensor(arch, head_dim):
    foreign.check_ends_of_memory(bfloat16((2, 2, 37, head_dim), (2, 1, 61, head_dim)), causal="lower_right")


@pytest.mark.parametrize(
    ("processor", "tiles", "granted", "kernel", "dtype", "arch"),
    [
        ("Intel", True, True, "forward", "bfloat16", "x86-64-v4-amx"),
        ("Intel", True, True, "backward", "bfloat16", "x86-64-v4-amx"),
        ("Intel", True, True, "decode", "bfloat16", "x86-64-v4"),
        ("Intel", True, True, "forward", "float16", "x86-64-v4"),
        ("Intel", True, False, "forward", "bfloat16", "x86-64-v4"),
        ("AMD", False, False, "forward", "bfloat16", "x86-64-v4-bf16"),
        ("AMD", False, False, "decode", "bfloat16", "x86-64-v4-bf16"),
        ("AMD", False, False, "forward", "float32", "x86-64-v4"),
    ],
)
def test_which_kernels_a_machine_gets(processor, tiles, granted, kernel, dtype, arch, monkeypatch):
    """The operating system has to grant AMX to a process; Intel's processors multiply pairs slowly."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles, raising=False)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: granted, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor}, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    backend = CpuBackend()
    assert backend.kernel_arch(backend.arch(), kernel, dtype) == arch


@pytest.mark.parametrize("arch", ARCHS)
def test_the_instructions_agree_with_the_software(arch):
    """But for powers of two, which have instructions of their own too."""
    if CpuBackend().arch() not in ARCHS[ARCHS.index(arch) :]:
        pytest.skip(f"no {arch} here")
    inputs = bfloat16((2, 4, 77, 67), (2, 2, 230, 67))
    found = []
    for software in (False, True):
        with kernels_for(arch, software=software):
            found.append(results(*inputs, causal="lower_right"))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-10)
