"""Errors against float64, beside those of PyTorch's own attention on the same inputs, over random shapes."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

import orchard_jit

# How many times PyTorch's error ours may be, and the error below which nobody counts: on a handful of numbers
# chance decides which of two correctly rounded results lies nearer to the truth.
# Where the processor multiplies pairs of bfloat16, both round the weights to it, and chance decides too.
FACTOR = {torch.float32: 2.0, torch.bfloat16: 1.1, torch.float16: 1.0}
FLOOR = {torch.float32: 3e-7, torch.bfloat16: 5e-4, torch.float16: 6e-5}
ROUNDING = 2**-23  # of a score, in float32: it moves the score's weight by as much as the score is large

# Each is four kernels to compile, so they are few: every dtype with a head dim that vectors divide, and with
# one that they do not.
KERNELS = [((64, 64), dtype) for dtype in FACTOR]
KERNELS += [((1, 1), torch.float32), ((64, 32), torch.float32)]
KERNELS += [((33, 33), torch.bfloat16), ((33, 33), torch.float16)]
SHAPES = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "kv_heads": st.integers(1, 2),
        "group": st.integers(1, 3),
        "sq": st.integers(0, 150),
        "sk": st.integers(0, 150),
        "kernel": st.sampled_from(KERNELS),
        "causal": st.booleans(),
        "layout": st.sampled_from(["dense", "heads inside", "expanded"]),
        "size": st.sampled_from([1.0, 1.0, 30.0, 1e4]),
        "seed": st.integers(0, 2**31),
    }
)


def make(shape, layout, generator, dtype):
    batch, heads, length, dim = shape
    if layout == "heads inside":
        return torch.randn(batch, length, heads, dim, generator=generator).to(dtype).transpose(1, 2)
    if layout == "expanded":
        return torch.randn(1, heads, length, dim, generator=generator).to(dtype).expand(shape)
    return torch.randn(shape, generator=generator).to(dtype)


def results(attention, inputs, grad_out):
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    out = attention(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad_out)]


def row_norm(tensor):
    """Root mean square of the rows' lengths."""
    return tensor.double().square().sum(-1).mean().sqrt() if tensor.numel() else 0.0


def longest_row(tensor):
    return tensor.double().norm(dim=-1).amax().item() if tensor.numel() else 0.0


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SHAPES)
def test_not_less_accurate_than_pytorch(case):
    generator = torch.Generator().manual_seed(case["seed"])
    heads, ((dim, dim_v), dtype) = case["kv_heads"] * case["group"], case["kernel"]
    q = make((case["batch"], heads, case["sq"], dim), case["layout"], generator, dtype) * case["size"] ** 0.5
    k = (
        make((case["batch"], case["kv_heads"], case["sk"], dim), case["layout"], generator, dtype)
        * case["size"] ** 0.5
    )
    v = make((case["batch"], case["kv_heads"], case["sk"], dim_v), case["layout"], generator, dtype)
    grad_out = torch.randn(case["batch"], heads, case["sq"], dim_v, generator=generator).to(dtype)
    causal = case["causal"]

    ours = results(
        lambda q, k, v: orchard_jit.flash_attention(q, k, v, causal="upper_left" if causal else False),
        (q, k, v),
        grad_out,
    )
    theirs = results(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True),
        (q, k, v),
        grad_out,
    )
    truth = reference.result(q, k, v, grad_out, "upper_left" if causal else "none")
    largest_score = longest_row(q) * longest_row(k) / dim**0.5
    # A score's gradient is a difference of numbers as large as |grad_out| |value|, and keeps their rounding.
    grad_scores = grad_out.double().norm() * row_norm(v) / dim**0.5
    sizes = (0.0, grad_scores * row_norm(k), grad_scores * row_norm(q), grad_out.double().norm())
    for name, size, actual, other, expected in zip(
        ("out", "grad_query", "grad_key", "grad_value"),
        sizes,
        ours,
        theirs,
        (truth.out, *truth.grads),
        strict=True,
    ):
        size = max(expected.norm().item(), float(size))
        floor = FLOOR[dtype] + ROUNDING * largest_score
        error = (actual.double() - expected).norm().item()
        limit = FACTOR[dtype] * (other.double() - expected).norm().item() + floor * size
        assert error <= limit, f"{name}: {error / limit:.2f} times the limit"


@pytest.mark.parametrize("dtype", FACTOR, ids=str)
@pytest.mark.parametrize("causal", (False, True))
@pytest.mark.parametrize("size", (1.0, 1e2, 1e4))
def test_many_numbers(dtype, causal, size):
    """Enough of them that chance has little say: here there is no floor."""
    q, k, v, grad_out = (torch.randn(1, 2, length, 64) for length in (256, 1024, 1024, 256))
    q, k, v, grad_out = (x.to(dtype) for x in (q * size**0.5, k * size**0.5, v, grad_out))
    ours = results(
        lambda q, k, v: orchard_jit.flash_attention(q, k, v, causal="upper_left" if causal else False),
        (q, k, v),
        grad_out,
    )
    theirs = results(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), (q, k, v), grad_out
    )
    truth = reference.result(q, k, v, grad_out, "upper_left" if causal else "none")
    for actual, other, expected in zip(ours, theirs, (truth.out, *truth.grads), strict=True):
        # 1.15: where scores are so large that one key takes all the weight, the gradients of query and key
        # are rounding noise alone, and that of two implementations differs by chance.
        assert reference.error(actual, expected) <= 1.15 * FACTOR[dtype] * reference.error(other, expected)


LEVELS = {
    "rising": lambda key: 50.0 * (key // 40),
    "falling": lambda key: -50.0 * (key // 40),
    "a late peak": lambda key: 300.0 * (key == 331),
    "a low start": lambda key: torch.where(key < 100, -3e3, 0.0),
    "slowly rising": lambda key: 0.25 * key,
}
"""What a key's scores are about: the maximum that weights are relative to has to follow them, or need not."""


@pytest.mark.parametrize("dtype", [*FACTOR, torch.float64], ids=str)
@pytest.mark.parametrize("masked", (False, True))
@pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS)
def test_a_maximum_that_moves(level, masked, dtype):
    """Up for every other query and down for its neighbour, which shares its vectors."""
    q, k, v = (torch.randn(1, 1, length, 33) for length in (150, 333, 333))
    q[..., 0] = torch.tensor([1.0, -1.0]).repeat(75)
    k[..., 0] = level(torch.arange(333))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    mask = torch.rand(150, 333) < 0.7 if masked else None
    out, lse = orchard_jit.flash_attention(q, k, v, scale=1.0, mask=mask, return_lse=True)
    truth_out, truth_lse = reference.attention(q.double(), k.double(), v.double(), scale=1.0, mask=mask)
    own, of_scores = {
        torch.bfloat16: (5e-3, ROUNDING),
        torch.float16: (6e-4, ROUNDING),
        torch.float32: (5e-7, ROUNDING),
        torch.float64: (1e-15, 2**-52),
    }[dtype]
    assert reference.error(out, truth_out) <= own + of_scores * k[..., 0].abs().max()
    torch.testing.assert_close(lse.double(), truth_lse, rtol=16 * of_scores, atol=20 * of_scores)


@pytest.mark.parametrize("wrong", (float("nan"), float("inf")))
def test_a_number_that_is_none_stays_with_the_queries_that_see_it(wrong):
    q, k, v = (torch.randn(1, 1, length, 16) for length in (40, 300, 300))
    k[..., 250, :] = wrong
    visible = torch.ones(40, 300, dtype=torch.bool)
    visible[:20, 250] = False
    out = orchard_jit.flash_attention(q, k, v, mask=visible)
    truth, _ = reference.attention(
        *(x.double() for x in (q, torch.nan_to_num(k, posinf=0.0), v)), mask=visible
    )
    assert reference.error(out[..., :20, :], truth[..., :20, :]) <= 2e-6
    assert out[..., 20:, :].isnan().any(-1).all()
