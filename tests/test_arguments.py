"""Bad input: each error names the argument, what came and what is accepted."""

from __future__ import annotations

import pytest
import torch

import orchard_jit
from orchard_jit import flash_attention, flash_attn_func, flash_attn_fwd, scaled_dot_product_attention

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
            "causal=True is ambiguous for query length 3 and key length 4",
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


@pytest.mark.parametrize(
    ("function", "options", "argument"),
    [
        (scaled_dot_product_attention, {"attn_mask": torch.ones(4, 4, dtype=torch.bool)}, "attn_mask"),
        (scaled_dot_product_attention, {"dropout_p": 0.1}, "dropout_p"),
        (flash_attn_func, {"dropout_p": 0.1}, "dropout_p"),
        (flash_attn_func, {"window_size": (3, 0)}, "window_size"),
        (flash_attn_func, {"softcap": 30.0}, "softcap"),
        (flash_attn_func, {"alibi_slopes": torch.ones(2)}, "alibi_slopes"),
        (flash_attn_func, {"return_attn_probs": True}, "return_attn_probs"),
        (flash_attn_fwd, {"dropout_p": 0.1}, "dropout_p"),
    ],
)
def test_what_is_not_supported_yet_says_so(function, options, argument):
    with pytest.raises(NotImplementedError, match=f"^{argument}=.*not supported yet"):
        call(function=function, **options)


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
    out, lse = orchard_jit.operators.forward(q, q, q, None, "none")
    backward = orchard_jit.operators.backward
    with pytest.raises(ValueError, match=r"grad_out has shape \[1, 2, 4, 9\]"):
        backward(torch.randn(1, 2, 4, 9), None, q, q, q, out, lse, None, "none")
    with pytest.raises(TypeError, match="grad_out is Double but out is Float"):
        backward(out.double(), None, q, q, q, out, lse, None, "none")
    with pytest.raises(ValueError, match=r"grad_lse has shape \[1, 2, 5\]"):
        backward(out, torch.randn(1, 2, 5), q, q, q, out, lse, None, "none")


def test_the_operator_itself_wants_four_dimensions():
    x = torch.randn(2, 4, 8)
    with pytest.raises(ValueError, match="query must have 4 dimensions"):
        orchard_jit.operators.forward(x, x, x, None, "none")
    with pytest.raises(ValueError, match="causal must be 'none', 'upper_left' or 'lower_right', got 'yes'"):
        orchard_jit.operators.forward(x[None], x[None], x[None], None, "yes")
