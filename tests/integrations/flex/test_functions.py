"""What a score_mod may do, and that nothing of it goes stale."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch.nn.attention import flex_attention as pytorchs
from torch.nn.attention.flex_attention import and_masks, noop_mask

from orchard_jit.integrations.flex import flex_attention

from .cases import DIM, HEADS, LENGTH, assert_equals_definition, blocks, inputs, values

# Many operators share one kernel.


def arithmetic(score, b, h, q, kv):
    i = (q // 3 + kv % 5 - (-kv) % 4 + (-q) // 2 + abs(q - kv) + torch.minimum(q, kv) * 2 - (5 - q)) * 0.01
    bounded = torch.clamp(q, 3, 9) + kv.clamp(max=7) + torch.maximum(q, 2 * kv).clamp(min=11) + kv**2 + h**0
    return score * 1.5 - i / (1 + h) + bounded * 0.001 + q / (kv + 1) * 0.1 + torch.sub(b, h, alpha=2)


def functions(score, b, h, q, kv):
    near = 0.5 * torch.sigmoid(score) + torch.exp(-score.square()) + torch.sin(score) * score.cos()
    positive = (score.abs() + 1).log() + torch.log2(2 + torch.relu(score)) + (score**2 + 1) ** 0.5
    more = torch.rsqrt(3 + score * score) + 1 / (2 + torch.exp2(score)) + torch.nn.functional.silu(score)
    powers = 0.01 * score**3 + 2.0 ** (-(h + 1)) + (score**2 + 1) ** -2 + torch.pow(0.5, score.clamp(-2, 2))
    return near + positive * 0.3 + more + powers


def conditions(score, b, h, q, kv):
    far = ~(abs(q - kv) < 20) ^ (h == 1)
    one = torch.where(far | (b != 0), score, -score)
    two = score.masked_fill((q > kv) & (q >= 2 * kv), 0.25) + (q != kv) * 0.5 + (kv <= q).float() + far.int()
    three = torch.logical_or(q % 2, kv % 3) + torch.logical_not(far) * torch.sign(score) + torch.sign(q - kv)
    four = torch.floor(score * 3) * 0.1 + (score * 3).ceil() * 0.2 + score % 0.9 + q * 0.3 // 0.7 * 0.1
    made = torch.zeros_like(score) + torch.full_like(score, 0.3) + b.new_ones(())
    return one + two * torch.tensor(0.5) + three + four + made + (q.bool() + far)


@pytest.fixture
def exact_integers():
    """PyTorch, too, makes float64 of them."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("score_mod", [arithmetic, functions, conditions])
def test_operators_mean_what_they_mean_to_pytorch(score_mod, exact_integers):
    tensors = inputs(dtype=torch.float64)
    close = {"rtol": 1e-8, "atol": 1e-8}
    assert_equals_definition(tensors, score_mod, close=close)
    tensors = [x.detach() for x in tensors]
    torch.testing.assert_close(
        flex_attention(*tensors, score_mod), pytorchs.flex_attention(*tensors, score_mod), **close
    )


def test_gradients_at_kinks_are_pytorchs():
    """Scores are 0 and 1."""

    def score_mod(score, b, h, q, kv):
        return torch.relu(score) + 3 * score.clamp(0, 1) + 7 * torch.maximum(score, torch.tensor(1.0))

    query = torch.zeros(1, 1, LENGTH, DIM, dtype=torch.float64)
    query[..., 0] = 1.0
    key, value = torch.zeros_like(query), torch.randn_like(query)
    key[..., 0] = torch.arange(LENGTH) % 2
    assert_equals_definition(
        [x.requires_grad_() for x in (query, key, value)],
        score_mod,
        scale=1.0,
        close={"rtol": 1e-9, "atol": 1e-9},
    )


class TestFunctions:
    def test_partials_methods_modules_and_helpers(self):
        class Bias(torch.nn.Module):
            def forward(self, score, b, h, q_idx, kv_idx):
                return score + slope * (kv_idx - q_idx)

        slope = 0.125
        tensors = values()
        wanted = flex_attention(*tensors, lambda score, b, h, q, kv: score + slope * (kv - q))
        scaled = functools.partial(lambda slope, score, b, h, q, kv: score + slope * (kv - q), slope)
        for score_mod in (Bias(), Bias().forward, scaled):
            assert torch.equal(flex_attention(*tensors, score_mod), wanted)

    def test_a_mask_that_hides_nothing_is_none(self, kernels):
        flex_attention(*values(), block_mask=blocks(and_masks(noop_mask, noop_mask)))
        assert kernels[0].score_mod.spec == ""
        assert kernels[0].window is None

    def test_scores_of_minus_infinity_are_a_mask(self, kernels):
        def score_mod(score, b, h, q, kv):
            return torch.where(kv <= q, score.masked_fill(q - kv > 10, -math.inf), float("-inf"))

        assert_equals_definition(inputs(), score_mod)
        assert kernels[0].score_mod.spec == ""
        assert kernels[0].window == (10, 0)

    def test_minus_infinity_may_be_added(self, device):
        def score_mod(score, b, h, q, kv):
            return score + torch.where((kv <= q) & (q > 3), 0.0, -math.inf)

        assert_equals_definition(values(device), score_mod)

    def test_negative_indices_count_from_the_end(self):
        table = torch.randn(LENGTH)
        assert_equals_definition(values(), lambda score, b, h, q, kv: score + table[q - kv])

    def test_indices_in_any_form(self):
        table = torch.randn(HEADS, 3, LENGTH, 2)
        wanted = flex_attention(*values(), lambda score, b, h, q, kv: score + table[h, 1, kv, b])
        for element in (
            lambda b, h, kv: table[h][1][kv][b],
            lambda b, h, kv: table[h, ..., b][1, kv],
            lambda b, h, kv: table[h, -2, kv, b],
            lambda b, h, kv: table[..., kv, b][h, torch.tensor(1)],
        ):
            torch.manual_seed(0)
            torch.randn(HEADS, 3, LENGTH, 2)
            ours = flex_attention(*values(), lambda score, b, h, q, kv: score + element(b, h, kv))  # noqa: B023
            assert torch.equal(ours, wanted)

    def test_tensors_without_dimensions(self, device):
        cap = torch.tensor(3.0, device=device)
        given = (lambda score, b, h, q, kv: cap * torch.tanh(score / cap)), None
        assert_equals_definition(values(device), lambda s, *_: 3 * torch.tanh(s / 3), given=given)


class TestNothingIsStale:
    def test_numbers_are_read_at_each_call_and_compile_nothing(self, kernels):
        def score_mod(score, b, h, q, kv):
            return cap * torch.tanh(score / cap) + torch.where(q // 7 == kv // 7, bonus, 0.0)

        tensors = values()
        cap, bonus = 3.0, 0.5
        assert_equals_definition(tensors, score_mod)
        cap, bonus = 1.5, -4.0
        assert_equals_definition(tensors, score_mod)
        assert kernels[0].score_mod.spec == kernels[1].score_mod.spec

    def test_tensors_are_read_at_each_call(self, kernels):
        slopes = torch.rand(HEADS)

        def score_mod(score, b, h, q, kv):
            return score + slopes[h] * (kv - q)

        tensors = values()
        assert_equals_definition(tensors, score_mod)
        slopes.mul_(2)
        assert_equals_definition(tensors, score_mod)
        slopes = torch.rand(HEADS)
        assert_equals_definition(tensors, score_mod)
        assert len({call.score_mod.spec for call in kernels}) == 1

    def test_more_numbers_than_kernels_take(self):
        def score_mod(score, b, h, q, kv):
            return sum((score * (3.5 + i) + q * 20_000_003 * 1e-9 - 3.25 - i for i in range(9)), score) * 0.02

        assert_equals_definition(values(dtype=torch.float64), score_mod)
