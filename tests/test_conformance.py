"""Forward and all gradients against attention in float64: the one suite that every device must pass."""

from __future__ import annotations

import itertools
import sys

import pytest
import reference
import torch

import orchard_jit

from .conftest import DEVICES

# Rounding the result to the dtype costs about half a unit in the last place, spread evenly: eps / sqrt(12)
# relative to the largest numbers of a binade. Twice that leaves room for the sums' own rounding.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3, torch.float64: 5e-15}

HEAD_DIMS = (16, 32, 40, 64, 72, 80, 96, 128, 160, 256)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CAUSAL = ("none", "upper_left", "lower_right")


def check(query, key, value, causal="none", scale=None, dtype=None):
    """Compare output, log-sum-exp and gradients; returns the output."""
    leaves = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    out, lse = orchard_jit.flash_attention(
        *leaves, causal=False if causal == "none" else causal, scale=scale, return_lse=True
    )
    grad_out = torch.randn_like(out)
    grads = torch.autograd.grad(out, leaves, grad_out)
    expected = reference.result(query, key, value, grad_out, causal, scale)

    tolerance = TOLERANCE[query.dtype]
    assert reference.error(out, expected.out) < tolerance
    torch.testing.assert_close(lse.cpu().double(), expected.lse, rtol=1e-5, atol=1e-5)
    for name, actual, wanted in zip(("query", "key", "value"), grads, expected.grads, strict=True):
        # A gradient that is 0 in exact arithmetic (one key, say) is a difference of numbers of this size.
        size = max(wanted.norm().item(), 0.1 * grad_out.cpu().double().norm().item())
        distance = (actual.cpu().double() - wanted).norm().item()
        assert distance < 2 * tolerance * size, name
    return out


def tensors(shape_q, shape_kv, dtype, device, head_dim_v=None):
    value_shape = (*shape_kv[:-1], head_dim_v or shape_kv[-1])
    return [
        torch.randn(shape, dtype=torch.float32).to(dtype).to(device)
        for shape in (shape_q, shape_kv, value_shape)
    ]


def matrix():
    """Every head dim with every dtype and every mask, on every device.

    A Mac in software takes seconds to compile a kernel, so there the masks take turns: every head dim and
    every dtype meets each of them. What that leaves out, causal or not, test_metal_checked has of nearly all.
    """
    for device, head_dim, dtype, causal in itertools.product(DEVICES, HEAD_DIMS, DTYPES, CAUSAL):
        turn = HEAD_DIMS.index(head_dim) + DTYPES.index(dtype)
        if device != "mps" or sys.platform == "darwin" or CAUSAL.index(causal) == turn % len(CAUSAL):
            yield pytest.param(device, head_dim, dtype, causal, id=f"{device}-{head_dim}-{dtype}-{causal}")


@pytest.mark.parametrize(("device", "head_dim", "dtype", "causal"), list(matrix()))
def test_every_head_dim_dtype_and_mask(device, head_dim, dtype, causal):
    """Ragged lengths, Sq != Sk, two query heads for each key head."""
    check(*tensors((1, 4, 37, head_dim), (1, 2, 70, head_dim), dtype, device), causal=causal)


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize(("sq", "sk"), list(itertools.product((1, 7, 64, 129), (1, 33, 96, 130))))
def test_lengths(device, sq, sk, causal):
    check(*tensors((2, 2, sq, 64), (2, 2, sk, 64), torch.float32, device), causal=causal)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 1), (6, 2), (8, 8)])
@pytest.mark.parametrize("causal", ("none", "upper_left"))
def test_grouped_query_heads(device, heads, kv_heads, causal):
    check(*tensors((2, heads, 65, 64), (2, kv_heads, 65, 64), torch.float32, device), causal=causal)


@pytest.mark.parametrize(("head_dim", "head_dim_v"), [(64, 32), (32, 64), (80, 128), (16, 40)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_has_its_own_head_dim(device, head_dim, head_dim_v, dtype):
    q, k, v = tensors((1, 2, 50, head_dim), (1, 2, 61, head_dim), dtype, device, head_dim_v)
    assert check(q, k, v).shape == (1, 2, 50, head_dim_v)


@pytest.mark.parametrize("head_dim", (1, 2, 3, 5, 33, 65, 97))
def test_odd_head_dims(device, head_dim):
    check(*tensors((1, 2, 20, head_dim), (1, 2, 30, head_dim), torch.float32, device))


def test_largest_head_dim_on_the_cpu():
    check(*tensors((1, 1, 33, 512), (1, 1, 40, 512), torch.float32, "cpu"))


@pytest.mark.parametrize("causal", CAUSAL)
def test_float64_on_the_cpu(causal):
    q, k, v = (torch.randn(1, 2, n, 24, dtype=torch.float64) for n in (19, 30, 30))
    check(q, k, v, causal=causal)


def test_scale_is_taken_as_given(device):
    check(*tensors((1, 1, 20, 16), (1, 1, 20, 16), torch.float32, device), scale=0.37)
    check(*tensors((1, 1, 20, 16), (1, 1, 20, 16), torch.float32, device), scale=-1.5)
    check(*tensors((1, 1, 20, 16), (1, 1, 20, 16), torch.float32, device), scale=0.0)


LAYOUTS = {
    "heads inside rows": lambda b, h, s, d, **o: torch.randn(b, s, h, d, **o).transpose(1, 2),
    "slice of packed qkv": lambda b, h, s, d, **o: torch.randn(b, s, 3, h, d, **o)[:, :, 1].transpose(1, 2),
    "padded rows": lambda b, h, s, d, **o: torch.randn(b, h, s, d + 5, **o)[..., :d],
    "padded rows, odd offset": lambda b, h, s, d, **o: torch.randn(b, h, s, d + 5, **o)[..., 3 : d + 3],
    "even rows, odd offset": lambda b, h, s, d, **o: torch.randn(b, h, s, d + 6, **o)[..., 3 : d + 3],
    "every other row": lambda b, h, s, d, **o: torch.randn(b, h, 2 * s, d, **o)[:, :, ::2],
    "expanded batch": lambda b, h, s, d, **o: torch.randn(1, h, s, d, **o).expand(b, h, s, d),
    "expanded heads": lambda b, h, s, d, **o: torch.randn(b, 1, s, d, **o).expand(b, h, s, d),
    "expanded rows": lambda b, h, s, d, **o: torch.randn(b, h, 1, d, **o).expand(b, h, s, d),
    "batch inside": lambda b, h, s, d, **o: torch.randn(h, s, b, d, **o).permute(2, 0, 1, 3),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_are_read_in_place(device, layout, dtype):
    q, k, v = (LAYOUTS[layout](2, 2, 35, 40, device=device, dtype=dtype) for _ in range(3))
    assert not q.is_contiguous()
    check(q, k, v, causal="upper_left")


def test_gradients_of_expanded_outputs(device):
    """sum() hands back a gradient with stride 0 in every dimension."""
    q, k, v = (x.requires_grad_() for x in tensors((1, 2, 9, 16), (1, 2, 9, 16), torch.float32, device))
    out = orchard_jit.flash_attention(q, k, v)
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    expected = reference.result(q, k, v, torch.ones_like(out))
    for actual, wanted in zip(grads, expected.grads, strict=True):
        torch.testing.assert_close(actual.cpu().double(), wanted, rtol=1e-4, atol=1e-5)


def test_rows_that_attend_to_nothing(device):
    """Lower-right with more queries than keys: the first Sq - Sk rows see no key."""
    q, k, v = (x.requires_grad_() for x in tensors((1, 2, 80, 32), (1, 2, 30, 32), torch.float32, device))
    out, lse = orchard_jit.flash_attention(q, k, v, causal="lower_right", return_lse=True)
    grads = torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
    assert (out[:, :, :50] == 0).all()
    assert (lse[:, :, :50] == -torch.inf).all()
    assert (grads[0][:, :, :50] == 0).all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    ("batch", "heads", "sq", "sk"), [(0, 2, 5, 5), (2, 0, 5, 5), (1, 2, 0, 5), (1, 2, 5, 0), (0, 0, 0, 0)]
)
def test_empty_inputs(device, batch, heads, sq, sk):
    q, k, v = tensors((batch, heads, sq, 16), (batch, heads, sk, 16), torch.float32, device)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = orchard_jit.flash_attention(*leaves, return_lse=True)
    grads = torch.autograd.grad(out.sum(), leaves)
    assert out.shape == (batch, heads, sq, 16)
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    assert all((grad == 0).all() and grad.shape == x.shape for grad, x in zip(grads, leaves, strict=True))


@pytest.mark.parametrize("size", (1e2, 1e4))
@pytest.mark.parametrize("causal", CAUSAL)
def test_extreme_logits(device, size, causal):
    """Scores up to about +-1e4: one key takes all the weight, and masked ones must not matter."""
    q, k, v = tensors((1, 1, 40, 16), (1, 1, 60, 16), torch.float64, "cpu")
    q *= size / 8
    out = orchard_jit.flash_attention(
        *(x.float().to(device) for x in (q, k, v)), causal=False if causal == "none" else causal
    )
    expected = reference.attention(q.float().double(), k.float().double(), v.float().double(), causal)[0]
    assert out.isfinite().all()
    assert reference.error(out, expected) < 1e-6 * size


def test_a_masked_huge_score_does_not_hide_visible_ones(device):
    """Key 1 is invisible to query 0 and scores 1e4 more than key 0."""
    q = torch.full((1, 1, 2, 4), 50.0)
    k = torch.stack((torch.full((4,), -50.0), torch.full((4,), 50.0)))[None, None]
    v = torch.randn(1, 1, 2, 4)
    out = orchard_jit.flash_attention(*(x.to(device) for x in (q, k, v)), causal=True)
    torch.testing.assert_close(out[0, 0].cpu(), v[0, 0])


def test_nan_reaches_every_row_that_uses_it(device):
    q, k, v = tensors((1, 1, 40, 16), (1, 1, 40, 16), torch.float32, "cpu")
    q[0, 0, 3] = torch.nan
    lost = orchard_jit.flash_attention(*(x.to(device) for x in (q, k, v)), causal=True).isnan().all(-1)[0, 0]
    assert lost.cpu().tolist() == [row == 3 for row in range(40)]
    k[0, 0, 20] = torch.nan
    lost = orchard_jit.flash_attention(*(x.to(device) for x in (q, k, v)), causal=True).isnan().all(-1)[0, 0]
    assert lost[20:].all()


def test_gradient_of_the_log_sum_exp(device):
    q, k, v = (x.requires_grad_() for x in tensors((1, 4, 20, 16), (1, 2, 30, 16), torch.float32, device))
    out, lse = orchard_jit.flash_attention(q, k, v, causal="lower_right", return_lse=True)
    weights_out, weights_lse = torch.randn_like(out), torch.randn_like(lse)
    grads = torch.autograd.grad((out * weights_out).sum() + (lse * weights_lse).sum(), (q, k, v))
    leaves = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    out, lse = reference.attention(*leaves, causal="lower_right")
    loss = (out * weights_out.cpu()).sum() + (lse * weights_lse.cpu()).sum()
    for actual, wanted in zip(grads, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(actual.cpu().double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_log_sum_exp_alone_can_be_differentiated(device):
    q, k, v = (x.requires_grad_() for x in tensors((1, 1, 8, 16), (1, 1, 9, 16), torch.float32, device))
    _, lse = orchard_jit.flash_attention(q, k, v, return_lse=True)
    lse.sum().backward()
    leaves = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
    wanted = torch.autograd.grad(reference.attention(*leaves)[1].sum(), leaves[:2])
    torch.testing.assert_close(q.grad.cpu().double(), wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(k.grad.cpu().double(), wanted[1], rtol=1e-4, atol=1e-5)
    assert (v.grad == 0).all()
