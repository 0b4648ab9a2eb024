"""The other arguments, and torch.compile."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.attention import flex_attention as pytorchs
from torch.nn.attention.flex_attention import AuxRequest

from orchard_jit.integrations.flex import flex_attention

from .cases import (
    BATCH,
    HEADS,
    LENGTH,
    assert_equals_definition,
    blocks,
    causal,
    inputs,
    loss,
    values,
)


class TestArguments:
    def test_the_signature_is_pytorchs(self):
        ours, theirs = (inspect.signature(f).parameters for f in (flex_attention, pytorchs.flex_attention))
        assert [(p.name, p.kind, p.default) for p in ours.values()] == [
            (p.name, p.kind, p.default) for p in theirs.values()
        ]

    def test_grouped_heads_other_lengths_scale_and_a_value_of_another_size(self, device):
        tensors = inputs(device, heads=2, length=20, keys=LENGTH, dim_v=8)
        mask = blocks(causal, length=20, keys=LENGTH, device=device)
        assert_equals_definition(tensors, None, causal, given=(None, mask), enable_gqa=True, scale=0.3)
        with pytest.raises(ValueError, match="4 heads and key has 2; enable_gqa=True"):
            flex_attention(*tensors)

    def test_keys_of_one_batch_for_all(self):
        query, key, value = inputs()
        shared = [query, *(x.detach()[:1].requires_grad_() for x in (key, value))]
        out = flex_attention(*shared, block_mask=blocks(causal))
        expanded = [query, *(x.expand(BATCH, -1, -1, -1) for x in shared[1:])]
        wanted = torch.autograd.grad(loss(flex_attention(*expanded, block_mask=blocks(causal))), shared)
        torch.testing.assert_close(torch.autograd.grad(loss(out), shared), wanted)
        with pytest.raises(ValueError, match="batch"):
            flex_attention(*shared)

    def test_log_sum_exp_in_both_ways(self):
        tensors = values()
        out, lse = flex_attention(*tensors, return_lse=True)
        assert torch.equal(flex_attention(*tensors), out)
        again, aux = flex_attention(*tensors, return_aux=AuxRequest(lse=True))
        assert torch.equal(again, out)
        assert torch.equal(aux.lse, lse)
        assert aux.max_scores is None
        assert flex_attention(*tensors, return_aux=AuxRequest())[1].lse is None
        with pytest.raises(ValueError, match="exclude each other"):
            flex_attention(*tensors, return_lse=True, return_aux=AuxRequest(lse=True))
        with pytest.raises(NotImplementedError, match="max_scores"):
            flex_attention(*tensors, return_aux=AuxRequest(max_scores=True))

    def test_kernel_options_are_hints_but_for_the_backend(self):
        tensors = values()
        hints = {"BLOCK_M": 64, "fwd_num_stages": 3, "BACKEND": "AUTO"}
        assert torch.equal(flex_attention(*tensors, kernel_options=hints), flex_attention(*tensors))
        with pytest.raises(NotImplementedError, match="BACKEND must be 'AUTO' here, got 'TRITON'"):
            flex_attention(*tensors, kernel_options={"BACKEND": "TRITON"})

    def test_inputs_of_other_kinds_are_refused(self):
        q, k, v = inputs()
        with pytest.raises(NotImplementedError, match=r"4 dimensions .*, query has shape \(4, 48, 16\)"):
            flex_attention(q[0], k, v)
        jagged = torch.nested.nested_tensor([torch.ones(3, 4)], layout=torch.jagged)
        with pytest.raises(NotImplementedError, match="key is nested"):
            flex_attention(q, jagged, v)

    def test_half_precision_computes_scores_in_float32(self, device):
        def score_mod(score, b, h, q, kv):
            return score + torch.where(score > 0, 1e-3, -1e-3).to(torch.bfloat16) * (q - kv).to(score.dtype)

        assert_equals_definition(
            values(device, dtype=torch.bfloat16), score_mod, close={"rtol": 0.02, "atol": 0.02}
        )


@pytest.mark.parametrize("how", ["the function", "a model that calls it"])
def test_a_compiled_graph_leaves_it_out(how):
    def model(*tensors):
        return 2 * flex_attention(*tensors, score_mod, block_mask)

    def score_mod(score, b, h, q_idx, kv_idx):
        return score + (kv_idx - q_idx) * torch.exp2(-((h + 1) * 8.0 / HEADS))

    block_mask, tensors = blocks(causal), inputs()
    torch._dynamo.reset()
    if how == "the function":
        compiled = torch.compile(flex_attention, backend="aot_eager")
        out, wanted = (
            compiled(*tensors, score_mod, block_mask),
            flex_attention(*tensors, score_mod, block_mask),
        )
    else:
        out, wanted = torch.compile(model, backend="aot_eager")(*tensors), model(*tensors)
        with pytest.raises(torch._dynamo.exc.Unsupported, match="disable"):
            torch.compile(lambda *x: model(*x), backend="aot_eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(out, wanted)
    gradients = (torch.autograd.grad(loss(x), tensors) for x in (out, wanted))
    for actual, truth in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, truth)
