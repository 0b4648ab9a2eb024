"""Bad input: each error names the argument, what came and what is accepted."""

from __future__ import annotations

import pytest
import torch

import orchard_jit
from orchard_jit import call as calls
from orchard_jit import flash_attention, flash_attn_func, scaled_dot_product_attention
from orchard_jit.call import Arguments

GOOD = (1, 2, 4, 8)


def call(q=GOOD, k=GOOD, v=GOOD, function=flash_attention, **options):
    return function(*(torch.randn(x) if isinstance(x, tuple) else x for x in (q, k, v)), **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"q": (8,)}, ValueError, r"query must have at least 2 dimensions.*got \(8,\)"),
        ({"q": (2, 4, 8)}, ValueError, r"key has 4 dimensions but query has 3"),
        ({"k": (1, 2, 4, 9)}, ValueError, "key has head_dim 9 but query has 8"),
        ({"k": (3, 2, 4, 8)}, ValueError, "key has batch 3 but query has 1"),
        ({"v": (1, 2, 5, 8)}, ValueError, "value has length 5 but key has 4"),
        ({"v": (1, 1, 4, 8)}, ValueError, "value has 1 heads but key has 2"),
        (
            {"k": (1, 3, 4, 8), "v": (1, 3, 4, 8)},
            ValueError,
            "query has 2 heads, which key's 3 heads do not divide",
        ),
        (
            {"k": (1, 0, 4, 8), "v": (1, 0, 4, 8)},
            ValueError,
            "query has 2 heads, which key's 0 heads do not divide",
        ),
        ({"q": (1, 2, 4, 513), "k": (1, 2, 4, 513)}, ValueError, "of query .*must be 1 to 512, got 513"),
        ({"q": (1, 2, 4, 0), "k": (1, 2, 4, 0)}, ValueError, "of query .*must be 1 to 512, got 0"),
        ({"k": torch.randn(GOOD).half()}, TypeError, "key is Half but query is Float"),
        (
            {"q": torch.ones(GOOD, dtype=torch.int64)},
            TypeError,
            "query must be float32, float16, bfloat16 or float64",
        ),
        (
            {"q": torch.randn(1, 2, 4, 16)[..., ::2]},
            ValueError,
            r"query must be dense.*stride 2.*query\.contiguous\(\)",
        ),
        ({"k": torch.randn(1, 2, 4, 1).expand(GOOD)}, ValueError, r"key must be dense.*stride 0"),
        (
            {"causal": "left"},
            ValueError,
            "causal must be False, True, 'upper_left' or 'lower_right', got 'left'",
        ),
        (
            {"q": (1, 2, 3, 8), "causal": True},
            ValueError,
            "the diagonal is ambiguous for 3 queries and 4 keys: say alignment=",
        ),
        ({"q": torch.randn(GOOD, device="meta"), "causal": "left"}, ValueError, "causal must be"),
    ],
)
def test_flash_attention_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        call(**arguments)


def test_meta_tensors_give_shapes():
    assert call(*(torch.empty(GOOD, device="meta") for _ in range(3))).shape == GOOD


def test_mixed_devices():
    with pytest.raises(ValueError, match="key is on meta but query is on cpu; they must be on one device"):
        call(k=torch.empty(GOOD, device="meta"))


ONES = torch.ones(4, 4)
PACKED = {
    "query_offsets": torch.tensor([0, 4], dtype=torch.int32),
    "key_offsets": torch.tensor([0, 4], dtype=torch.int32),
}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": ONES}, TypeError, "mask must be bool, got Float"),
        (
            {"mask": torch.ones(3, 4, dtype=torch.bool)},
            ValueError,
            r"mask has shape \[1, 1, 3, 4\].*\[1, 2, 4, 4\]",
        ),
        (
            {"mask": torch.ones(4, 4, dtype=torch.bool, device="mps")},
            ValueError,
            "mask is on mps:0 but query is on cpu",
        ),
        ({"bias": ONES.double()}, TypeError, "bias must be Float as query is, or Float, got Double"),
        ({"bias": torch.ones(4, 5)}, ValueError, r"bias has shape \[1, 1, 4, 5\]"),
        ({"window": 3}, ValueError, r"window must be \(left, right\), got 3"),
        ({"window": (1.5, 0)}, ValueError, "window must be two integers from 0 on, or None or -1"),
        ({"window": (-2, 0)}, ValueError, "window must be two integers"),
        (
            {"alignment": "left"},
            ValueError,
            "alignment must be None, 'upper_left' or 'lower_right', got 'left'",
        ),
        ({"causal": "upper_left", "alignment": "lower_right"}, ValueError, "contradict"),
        ({"softcap": -1.0}, ValueError, "cap must be positive, got -1.0"),
        ({"alibi_slopes": torch.ones(1, 2, 3)}, ValueError, r"alibi_slopes must be \(heads\), here \(2,\)"),
        ({"sinks": torch.ones(3)}, ValueError, r"sinks must have shape \[2\], got \[3\]"),
        ({"dropout_p": 1.5}, ValueError, "dropout must be 0 to 1, got 1.5"),
        ({"key_lengths": torch.tensor([3])}, TypeError, "key_lengths must be Int, got Long"),
        (
            {"key_lengths": torch.tensor([5], dtype=torch.int32)},
            ValueError,
            "key_lengths must be 0 to 4.*got 5 at 0",
        ),
        ({"alibi_slopes": torch.ones(2, requires_grad=True)}, NotImplementedError, "requires a gradient"),
    ],
)
def test_features_refuse(options, error, message):
    with pytest.raises(error, match=message):
        flash_attention(*(torch.randn(GOOD) for _ in range(3)), **options)


def test_packed_sequences_have_no_common_plane():
    q = torch.randn(GOOD)
    with pytest.raises(ValueError, match="mask can't be combined with packed sequences"):
        calls.forward(
            Arguments(q, q, q, mask=ONES.bool()[None, None], longest_query=4, longest_key=4, **PACKED)
        )


def test_flash_attn_func_wants_four_dimensions():
    with pytest.raises(ValueError, match=r"q must have 4 dimensions .*got \(4, 8\)"):
        call((4, 8), (4, 8), (4, 8), function=flash_attn_func)


def test_heads_of_key_need_enable_gqa():
    with pytest.raises(ValueError, match="pass enable_gqa=True"):
        call((1, 4, 4, 8), function=scaled_dot_product_attention)
    assert call((1, 4, 4, 8), function=scaled_dot_product_attention, enable_gqa=True).shape == (1, 4, 4, 8)


def test_leading_dimensions_that_cannot_be_merged():
    x = torch.randn(3, 2, 2, 4, 8).transpose(0, 1)
    with pytest.raises(
        ValueError, match=r"leading dimensions of query can't be merged.*query\.contiguous\(\)"
    ):
        flash_attention(x, x, x)


def test_gradients_that_do_not_fit():
    q = torch.randn(GOOD)
    out, lse = orchard_jit.operators.forward(q, q, q)
    backward = orchard_jit.operators.backward
    with pytest.raises(ValueError, match=r"grad_out has shape \[1, 2, 4, 9\]"):
        backward(torch.randn(1, 2, 4, 9), None, *Arguments(q, q, q), out, lse, False)
    with pytest.raises(TypeError, match="grad_out is Double but out is Float"):
        backward(out.double(), None, *Arguments(q, q, q), out, lse, False)
    with pytest.raises(ValueError, match=r"grad_lse has shape \[1, 2, 5\]"):
        backward(out, torch.randn(1, 2, 5), *Arguments(q, q, q), out, lse, False)


def test_the_operator_itself_wants_four_dimensions():
    x = torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match="query must have 4 dimensions"):
        orchard_jit.operators.forward(x, x, x)
