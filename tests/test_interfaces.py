"""The public functions mean the same as those whose names they bear."""

from __future__ import annotations

import pkgutil

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import orchard_jit
from orchard_jit import flash_attention, flash_attn_func, flash_attn_fwd, scaled_dot_product_attention


@pytest.mark.parametrize(
    ("shape_q", "shape_kv"),
    [
        ((5, 16), (7, 16)),
        ((2, 5, 16), (2, 7, 16)),
        ((3, 2, 5, 16), (3, 2, 7, 16)),
        ((2, 3, 2, 5, 16), (2, 3, 2, 7, 16)),
        ((1, 2, 5, 16), (3, 2, 7, 16)),
        ((3, 4, 5, 16), (3, 1, 7, 16)),
        ((3, 4, 5, 16), (7, 16)),
    ],
)
@pytest.mark.parametrize("is_causal", (False, True))
def test_scaled_dot_product_attention_is_pytorchs(shape_q, shape_kv, is_causal):
    q, k, v = (torch.randn(shape, requires_grad=True) for shape in (shape_q, shape_kv, shape_kv))
    ours = scaled_dot_product_attention(q, k, v, None, 0.0, is_causal)
    theirs = F.scaled_dot_product_attention(q, k, v, None, 0.0, is_causal)
    torch.testing.assert_close(ours, theirs)
    grad_out = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(x, (q, k, v), grad_out) for x in (ours, theirs)))


def test_scaled_dot_product_attention_with_grouped_heads_and_a_scale():
    q, k, v = torch.randn(2, 6, 5, 16), torch.randn(2, 3, 7, 16), torch.randn(2, 3, 7, 24)
    options = {"scale": 0.1, "enable_gqa": True}
    torch.testing.assert_close(
        scaled_dot_product_attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options)
    )


@pytest.mark.parametrize("causal", (False, True))
def test_flash_attn_func_is_lower_right_and_rows_first(causal):
    q, k, v = torch.randn(2, 5, 4, 16), torch.randn(2, 9, 2, 16), torch.randn(2, 9, 2, 16)
    out = flash_attn_func(q, k, v, 0.0, None, causal)
    visible = torch.ones(5, 9, dtype=torch.bool).tril(9 - 5) if causal else None
    theirs = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=visible, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(out, theirs)


def test_flash_attn_fwd_as_orchard_documents_it():
    q, k, v = (torch.randn(2, 4, 64, requires_grad=True) for _ in range(3))
    out, mask = flash_attn_fwd(q, k, v, 1.0 / 64**0.5, 0.0, False)
    out.sum().backward()
    assert mask.shape == (0,)
    assert mask.dtype == torch.bool
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    F.scaled_dot_product_attention(*leaves).sum().backward()
    for ours, theirs in zip((q, k, v), leaves, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_flash_attn_fwd_is_upper_left():
    q, k = torch.randn(1, 3, 8), torch.randn(1, 6, 8)
    out, _ = flash_attn_fwd(q, k, k, 0.3, 0.0, True)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, k, is_causal=True, scale=0.3))


def test_log_sum_exp_is_natural_and_keeps_the_leading_dimensions():
    q, k = torch.randn(3, 5, 8), torch.randn(3, 6, 8)
    out, lse = flash_attention(q, k, k, return_lse=True)
    assert out.shape == (3, 5, 8)
    torch.testing.assert_close(lse, torch.logsumexp(q @ k.mT / 8**0.5, -1))


def test_true_means_either_alignment_of_equal_lengths():
    x = torch.randn(1, 1, 6, 8)
    expected = flash_attention(x, x, x, causal="upper_left")
    assert torch.equal(flash_attention(x, x, x, causal=True), expected)
    assert torch.equal(flash_attention(x, x, x, causal="lower_right"), expected)


def test_public_names():
    for name in orchard_jit.__all__:
        assert getattr(orchard_jit, name).__doc__, name


def test_every_public_name_is_there_whatever_was_imported_before():
    modules = {name for _, name, _ in pkgutil.walk_packages(orchard_jit.__path__)}
    assert not modules & set(orchard_jit.__all__)  # such a module, once imported, would hide the name
    assert all(getattr(orchard_jit, name) is not None for name in orchard_jit.__all__)
    assert set(orchard_jit.__all__) <= set(dir(orchard_jit))
    with pytest.raises(AttributeError, match="no attribute 'flash_atention'"):
        _ = orchard_jit.flash_atention
