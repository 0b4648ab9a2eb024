"""Tensors that are learned: a bias gets its gradient, and what would get none is refused."""

from __future__ import annotations

import math

import pytest
import reference
import torch

from orchard_jit.integrations.flex import flex_attention

from .cases import BATCH, CLOSE, HEADS, LENGTH, assert_equals_definition, inputs, loss, values


class TestLearnedBias:
    @pytest.mark.parametrize(
        "shape, element",
        [
            ((HEADS, LENGTH, LENGTH), lambda bias, b, h, q, kv: bias[h, q, kv]),
            ((LENGTH + 5, LENGTH + 3), lambda bias, b, h, q, kv: bias[kv][q]),
            ((LENGTH, BATCH), lambda bias, b, h, q, kv: bias[kv, b]),
        ],
        ids=["heads, queries, keys", "transposed, and longer than the inputs", "keys, batch"],
    )
    def test_gradient(self, shape, element, device):
        bias, tensors = torch.randn(shape), inputs(device)

        def score_mod(bias):
            def function(score, b, h, q, kv):
                return torch.where(
                    q >= kv, 2.5 * torch.tanh(score / 2.5) + element(bias, b, h, q, kv), -math.inf
                )

            return function

        def broadcast(score, b, h, q, kv):
            taken = element(theirs, b, h, q, kv) if theirs.shape[0] != LENGTH + 5 else theirs[kv, q]
            return torch.where(q >= kv, 2.5 * torch.tanh(score / 2.5) + taken, -math.inf)

        ours = bias.to(device).requires_grad_()
        loss(flex_attention(*tensors, score_mod(ours))).backward()
        theirs = bias.detach().double().requires_grad_()
        out, _ = reference.attention(*(x.detach().cpu().double() for x in tensors), score=broadcast)
        loss(out).backward()
        torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, **CLOSE)

    @pytest.mark.parametrize(
        "score_mod",
        [
            lambda bias: lambda score, b, h, q, kv: score + 2 * bias[h, q],
            lambda bias: lambda score, b, h, q, kv: score * bias[h, q],
            lambda bias: lambda score, b, h, q, kv: score + bias[h, abs(q - kv)],
            lambda bias: lambda score, b, h, q, kv: score + bias[h, q] + bias[h, kv],
            lambda bias: lambda score, b, h, q, kv: score + bias[0, 0].view(()),
        ],
    )
    def test_what_would_get_no_gradient_is_refused(self, score_mod):
        bias = torch.randn(HEADS, LENGTH, requires_grad=True)
        with pytest.raises(
            NotImplementedError, match=r"requires a gradient.*\n.*test_learned_bias.py:\d+: .*bias"
        ):
            flex_attention(*inputs(), score_mod(bias))

    def test_none_is_wanted_in_no_grad(self):
        slopes, tensors = torch.rand(HEADS, requires_grad=True), values()
        with torch.no_grad():
            out = flex_attention(*tensors, lambda score, b, h, q, kv: score + slopes[h] * (kv - q))
        detached = slopes.detach()
        wanted = flex_attention(*tensors, lambda score, b, h, q, kv: score + detached[h] * (kv - q))
        assert torch.equal(out, wanted)

    def test_conditions_have_no_gradient_to_lose(self):
        limits = torch.randn(HEADS, requires_grad=True)
        assert_equals_definition(
            values(), lambda score, b, h, q, kv: torch.where(score > limits[h].detach(), score, 0.5 * score),
            given=(lambda score, b, h, q, kv: torch.where(score > limits[h], score, 0.5 * score), None),
        )  # fmt: skip
