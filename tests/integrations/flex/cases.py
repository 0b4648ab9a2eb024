"""What all of these tests are made of: inputs, and flex_attention held against its definition.

Values are compared with PyTorch's own flex_attention on the CPU; gradients, which that does not have there,
with autograd through dense attention in float64.
"""

from __future__ import annotations

import reference
import torch
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

from orchard_jit.integrations.flex import flex_attention

BATCH, HEADS, LENGTH, DIM = 2, 4, 48, 16
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def inputs(device="cpu", *, heads=HEADS, length=LENGTH, keys=None, dim_v=DIM, dtype=torch.float32):
    query = torch.randn(BATCH, HEADS, length, DIM, dtype=dtype)
    key = torch.randn(BATCH, heads, keys or length, DIM, dtype=dtype)
    value = torch.randn(BATCH, heads, keys or length, dim_v, dtype=dtype)
    return [x.to(device).requires_grad_() for x in (query, key, value)]


def values(*arguments, **options):
    """Inputs of which no gradient is asked for, so that no backward has to be compiled."""
    return [x.detach() for x in inputs(*arguments, **options)]


def blocks(mask_mod, *, length=LENGTH, keys=None, device="cpu", size=16, batch=BATCH, heads=HEADS):
    keys = length if keys is None else keys
    return create_block_mask(mask_mod, batch, heads, length, keys, device=device, BLOCK_SIZE=size)


def expected(tensors, score_mod=None, mask_mod=None, **options):
    """Output, log-sum-exp and gradients by the definition, where the functions take all places at once."""
    tensors = [x.detach().cpu().double().requires_grad_() for x in tensors]
    out, lse = reference.attention(*tensors, score=score_mod, visible=mask_mod, **options)
    return out, lse, torch.autograd.grad(loss(out), tensors)


def loss(out):
    return (
        out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    ).sum()


def assert_equals_definition(tensors, score_mod=None, mask_mod=None, *, given=None, close=CLOSE, **options):
    """`given`: the functions on the tensors' device, if they capture tensors."""
    ours, block_mask = given or (score_mod, mask_mod and blocks(mask_mod, device=tensors[0].device))
    out, aux = flex_attention(*tensors, ours, block_mask, return_aux=AuxRequest(lse=True), **options)
    wanted_out, wanted_lse, wanted = expected(tensors, score_mod, mask_mod, scale=options.get("scale"))
    torch.testing.assert_close(out.cpu().double(), wanted_out, **close)
    torch.testing.assert_close(aux.lse.cpu().double(), wanted_lse, **close)
    if out.requires_grad:
        for gradient, truth in zip(torch.autograd.grad(loss(out), tensors), wanted, strict=True):
            torch.testing.assert_close(gradient.cpu().double(), truth, **close)


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx
