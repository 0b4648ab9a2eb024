"""What is refused, with the line where it is asked for."""

from __future__ import annotations

import math

import pytest
import torch

from orchard_jit.integrations.flex import flex_attention

from .cases import HEADS, blocks, causal, inputs, values


class Module(torch.nn.Module):
    def forward(self, score, b, h, q, kv):
        return score if kv < q else -score


REFUSALS = {
    "Python asks for a value": [
        lambda score, b, h, q, kv: score if q > kv else -score,
        lambda score, b, h, q, kv: score * (q > kv and kv > 2),
        lambda score, b, h, q, kv: score + min(q, kv),
        lambda score, b, h, q, kv: score + math.sqrt(q),
        lambda score, b, h, q, kv: score + q.item(),
        lambda score, b, h, q, kv: score + [1.0, 2.0][b],
        Module(),
    ],
    "rand draws random numbers": [lambda score, b, h, q, kv: score + torch.rand(())],
    "add_ writes into a tensor": [lambda score, b, h, q, kv: score.add_(1)],
    "fill_ writes into a tensor": [lambda score, b, h, q, kv: score + torch.zeros(3).fill_(2)[h]],
    "the operator erf is not accepted": [lambda score, b, h, q, kv: torch.erf(score)],
    "the operator unsqueeze is not accepted": [lambda score, b, h, q, kv: score.unsqueeze(0)],
    "the operator index_select is not": [lambda score, b, h, q, kv: score + TABLE.index_select(0, h)],
    "rsub is not accepted with these": [lambda score, b, h, q, kv: torch.rsub(score, q, alpha=2)],
    "& | ^ ~ are accepted of bools": [lambda score, b, h, q, kv: score + (q & 3)],
    "this power is not accepted": [
        lambda score, b, h, q, kv: score**0.3,
        lambda score, b, h, q, kv: score**kv,
        lambda score, b, h, q, kv: 2**q + score,
        lambda score, b, h, q, kv: score**100,
    ],
    "a float cannot become an integer": [lambda score, b, h, q, kv: score + TABLE[(q / 7).int()]],
    "a cast to torch.int8": [lambda score, b, h, q, kv: score + q.to(torch.int8)],
    "an index cannot depend on the score": [lambda score, b, h, q, kv: TABLE[torch.where(score > 0, 1, 2)]],
    "an index must be an integer": [
        lambda score, b, h, q, kv: score + TABLE[q > kv],
        lambda score, b, h, q, kv: score + TABLE.view(4, 12)[h, 1:3],
        lambda score, b, h, q, kv: score + TABLE[None, q],
    ],
    r"shape \(48,\) must be indexed down": [lambda score, b, h, q, kv: score + TABLE],
    "a tensor must be float32, .* not uint8": [lambda score, b, h, q, kv: score + TABLE.byte()[q]],
    "up to 4 dimensions, not 5": [
        lambda score, b, h, q, kv: score + TABLE.view(1, 1, 2, 3, 8)[0, 0, b, b, h]
    ],
    "a tensor is on meta": [lambda score, b, h, q, kv: score + torch.ones(9, device="meta")[h]],
    "cut off by detach": [lambda score, b, h, q, kv: score.detach() * 2],
    "runs without gradients": [torch.no_grad()(lambda score, b, h, q, kv: score * 2)],
    "a condition must be a bool": [lambda score, b, h, q, kv: torch.where(q, score, 0.0)],
    "rounding_mode='trunc'": [lambda score, b, h, q, kv: score + torch.div(q, 2, rounding_mode="trunc")],
}
TABLE = torch.arange(48.0)


class TestRefusals:
    @pytest.mark.parametrize(
        "message, score_mod", [(message, each) for message, all_ in REFUSALS.items() for each in all_]
    )
    def test_what_no_kernel_can_do_is_refused_with_its_line(self, message, score_mod):
        with pytest.raises(NotImplementedError, match=message) as caught:
            flex_attention(*inputs(), score_mod)
        name = "Module" if isinstance(score_mod, Module) else "<lambda>"
        first, place, accepted = str(caught.value).split("\n")
        assert first.startswith(f"flex_attention: score_mod {name}")
        assert "test_refusals.py:" in place
        assert "lambda" in place or place.endswith("return score if kv < q else -score")
        assert accepted.startswith("Accepted: ")

    @pytest.mark.parametrize(
        "index, message",
        [
            (lambda q, kv: q, "an index from 0 to 47 is out of bounds for a dimension of size 40"),
            (lambda q, kv: q - kv + 7, "an index from -40 to 54"),
            (lambda q, kv: 40, "40 is out of bounds|an index from 40 to 40"),
        ],
    )
    def test_an_index_that_leaves_its_tensor(self, index, message):
        short = torch.zeros(40)
        with pytest.raises(IndexError, match=message):
            flex_attention(*inputs(), lambda score, b, h, q, kv: score + short[index(q, kv)] + short[h])

    @pytest.mark.parametrize(
        "score_mod, message",
        [
            (lambda score, b, h, q, kv: 1.0, "must return a scalar tensor, got float"),
            (
                lambda score, b, h, q, kv: TABLE.view(2, 24)[b],
                r"must return a scalar tensor, got shape \(24,\)",
            ),
        ],
    )
    def test_what_a_function_must_return(self, score_mod, message):
        with pytest.raises(TypeError, match=message):
            flex_attention(*inputs(), score_mod)

    def test_a_mask_mod_must_return_a_bool(self):
        block_mask = blocks(causal)
        block_mask.mask_mod = lambda b, h, q, kv: q - kv
        with pytest.raises(TypeError, match=r"mask_mod .*<lambda> must return bools, got int"):
            flex_attention(*inputs(), block_mask=block_mask)

    def test_more_than_kernels_take(self):
        tables = [torch.ones(HEADS) for _ in range(9)]
        with pytest.raises(ValueError, match="flex_attention: a score function has at most 8 tensors"):
            flex_attention(*inputs(), lambda score, b, h, q, kv: sum((t[h] for t in tables), score))

    def test_transforms(self):
        tensors = values()
        with pytest.raises(NotImplementedError, match=r"not under torch.func's vmap and grad"):
            torch.func.grad(lambda q: flex_attention(q, *tensors[1:]).sum())(tensors[0])

    def test_values_do_not_outlive_the_function(self):
        kept = []
        flex_attention(*inputs(), lambda score, b, h, q, kv: kept.append(score) or score)
        with pytest.raises(RuntimeError, match="used outside"):
            kept[0] + 1
