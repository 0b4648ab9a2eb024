"""Under autocast, attention computes in the lower precision, as PyTorch's own does."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F  # noqa: N812

from orchard_jit import (
    flash_attention,
    flash_attn_func,
    flash_attn_fwd,
    flash_attn_varlen_func,
    scaled_dot_product_attention,
)

SHAPE = (2, 2, 9, 16)


def varlen(q, k, v):
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32, device=q.device)
    return flash_attn_varlen_func(*(x[0].transpose(0, 1) for x in (q, k, v)), offsets, offsets, 5, 5)


FUNCTIONS = {
    "flash_attention": flash_attention,
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "flash_attn_func": lambda q, k, v: flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v))),
    "flash_attn_fwd": lambda q, k, v: flash_attn_fwd(q, k, v)[0],
    "flash_attn_varlen_func": varlen,
}


def leaves(device, dtype=torch.float32):
    return [torch.randn(SHAPE).to(dtype).to(device).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_output_in_the_lower_precision_and_gradients_in_the_leaves(device, function, dtype):
    inputs = leaves(device)
    with torch.autocast(device, dtype):
        out = function(*inputs)
    assert out.dtype == dtype
    out.float().square().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 and leaf.grad.abs().sum() > 0 for leaf in inputs)


@pytest.mark.parametrize("given", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
@pytest.mark.parametrize("enabled", (False, True))
def test_dtypes_are_pytorchs(given, enabled):
    """float64 stays what it is."""
    inputs = leaves("cpu", given)
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        ours = scaled_dot_product_attention(*inputs)
        theirs = F.scaled_dot_product_attention(*inputs)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0.02, atol=0.02)


def test_inputs_of_several_precisions_become_one(device):
    q, k, v = leaves(device)
    with torch.autocast(device, torch.bfloat16):
        assert flash_attention(q, k.bfloat16(), v.half()).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="they must have one dtype"):
        flash_attention(q, k.bfloat16(), v)


def test_a_bias_comes_in_the_lower_precision_too(device):
    inputs, bias = leaves(device), torch.randn(2, 9, 9).to(device).requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        out = flash_attention(*inputs, bias=bias)
    out.float().square().sum().backward()
    assert bias.grad.dtype == torch.float32
    exact = [x.detach().cpu().double().requires_grad_() for x in (*inputs, bias)]
    expected, _ = reference.attention(*exact[:3], bias=exact[3])
    expected.square().sum().backward()
    assert reference.error(out, expected.detach()) < 0.02
    for leaf, wanted in zip((*inputs, bias), exact, strict=True):
        assert reference.error(leaf.grad, wanted.grad) < 0.04


def test_masks_sinks_and_slopes_stay_what_they_are(device):
    q, k, v = leaves(device)
    sinks, slopes = torch.randn(2, device=device, requires_grad=True), torch.rand(2, device=device)
    mask = torch.rand(9, 9, device=device) < 0.7
    with torch.autocast(device, torch.bfloat16):
        out, lse = flash_attention(q, k, v, mask=mask, sinks=sinks, alibi_slopes=slopes, return_lse=True)
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    (out.sum() + lse.sum()).backward()
    assert sinks.grad.dtype == torch.float32


def test_the_backward_may_run_under_autocast_too(device):
    inputs = leaves(device)
    with torch.autocast(device, torch.bfloat16):
        flash_attention(*inputs).float().square().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in inputs)


def test_compiled_under_autocast():
    torch._dynamo.reset()

    def attention(q, k, v):
        with torch.autocast("cpu", torch.bfloat16):
            return flash_attention(q, k, v, causal=True)

    inputs = leaves("cpu")
    out = torch.compile(attention, fullgraph=True, backend="aot_eager")(*inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, attention(*inputs))
    grads = torch.autograd.grad(out.float().sum(), inputs)
    assert all(grad.dtype == torch.float32 for grad in grads)
