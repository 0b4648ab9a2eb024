"""FlexAttention's signature: its published examples and semantics, gradients, and what is refused.

Values are compared with PyTorch's own flex_attention on the CPU; gradients, which that does not have there,
with autograd through dense attention in float64.
"""

from __future__ import annotations

import functools
import inspect
import math
from types import SimpleNamespace

import pytest
import reference
import torch
from torch.nn.attention import flex_attention as pytorchs
from torch.nn.attention.flex_attention import (
    AuxRequest,
    BlockMask,
    and_masks,
    create_block_mask,
    noop_mask,
    or_masks,
)

from orchard_jit.integrations.flex import attention, flex_attention

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


@pytest.fixture
def kernels(monkeypatch):
    """What `flash_attention` is asked for, call by call."""
    calls = []

    def recorded(*tensors, **options):
        calls.append(SimpleNamespace(**options))
        return flash_attention(*tensors, **options)

    flash_attention = attention.flash_attention
    monkeypatch.setattr(attention, "flash_attention", recorded)
    return calls


# The published examples.


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def alibi_in_a_sliding_window(device):
    def score_mod(score, b, h, q_idx, kv_idx):
        slope = torch.exp2(-((h + 1) * 8.0 / HEADS))
        return score + (kv_idx - q_idx) * slope

    def window(b, h, q_idx, kv_idx):
        return q_idx - kv_idx <= 10

    return score_mod, and_masks(causal, window)


def soft_cap_of_a_prefix_lm(device):
    lengths = torch.tensor([5, 30], device=device)

    def score_mod(score, b, h, q_idx, kv_idx):
        return 2.5 * torch.tanh(score / 2.5)

    def prefix(b, h, q_idx, kv_idx):
        return kv_idx < lengths[b]

    return score_mod, or_masks(prefix, causal)


def causal_documents(device):
    """Places are counted from the beginning of each document."""
    document = (torch.arange(LENGTH, device=device) // 13).expand(BATCH, LENGTH).contiguous()
    start = torch.arange(0, LENGTH, 13, device=device)

    def mask_mod(b, h, q_idx, kv_idx):
        inner = causal(b, h, q_idx - start[document[b, q_idx]], kv_idx - start[document[b, kv_idx]])
        return (document[b, q_idx] == document[b, kv_idx]) & inner

    return None, mask_mod


def relative_position_bias_in_a_dilated_window(device):
    table = torch.linspace(-1, 1, (2 * LENGTH - 1) * HEADS).view(2 * LENGTH - 1, HEADS).to(device)

    def score_mod(score, b, h, q_idx, kv_idx):
        return score + table[q_idx - kv_idx + LENGTH - 1, h]

    def dilated(b, h, q_idx, kv_idx):
        distance = torch.abs(q_idx - kv_idx)
        return (distance <= 12) & (distance % 3 == 0)

    return score_mod, dilated


def neighborhood_of_an_image(device):
    width, reach = 8, 2

    def mask_mod(b, h, q_idx, kv_idx):
        row, column = q_idx // width, q_idx % width
        nearest_row = row.clamp(reach, LENGTH // width - 1 - reach)
        nearest_column = column.clamp(reach, width - 1 - reach)
        near_rows = (nearest_row - kv_idx // width).abs() <= reach
        return near_rows & ((nearest_column - kv_idx % width).abs() <= reach)

    return None, mask_mod


EXAMPLES = [
    alibi_in_a_sliding_window,
    soft_cap_of_a_prefix_lm,
    causal_documents,
    relative_position_bias_in_a_dilated_window,
    neighborhood_of_an_image,
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example, device):
    tensors = inputs(device)
    score_mod, mask_mod = example(device)
    given = score_mod, mask_mod and blocks(mask_mod, device=device)
    assert_equals_definition(tensors, *example("cpu"), given=given)


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_as_pytorch_has_it(example):
    tensors = values()
    score_mod, mask_mod = example("cpu")
    block_mask = mask_mod and blocks(mask_mod)
    ours = flex_attention(*tensors, score_mod, block_mask)
    torch.testing.assert_close(ours, pytorchs.flex_attention(*tensors, score_mod, block_mask), **CLOSE)


# What a function may do. Many operators share one kernel.


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


# Masks.


WINDOWS = [  # the mask, the window that it implies, and whether it says anything else
    (lambda b, h, q, kv: q >= kv, (None, 0), False),
    (lambda b, h, q, kv: kv < q + 1, (None, 0), False),
    (lambda b, h, q, kv: kv - q <= 0, (None, 0), False),
    (lambda b, h, q, kv: ~(q < kv), (None, 0), False),
    (lambda b, h, q, kv: q > kv, (None, 0), True),
    (lambda b, h, q, kv: (q >= kv) & (h > 1), (None, 0), True),
    (lambda b, h, q, kv: (q >= kv) & (q - kv <= 7), (7, 0), False),
    (lambda b, h, q, kv: (q - kv < 8) & (kv - q <= 0) & (q < kv + 100), (7, 0), False),
    (lambda b, h, q, kv: ((q + 2) - (kv + 2) <= 7) & (-q <= -kv), (7, 0), False),
    (lambda b, h, q, kv: abs(q - kv) <= 5, (5, 5), False),
    (lambda b, h, q, kv: torch.abs(kv - q) < 6, (5, 5), False),
    (lambda b, h, q, kv: abs(kv - q - 3) <= 6, (3, 9), False),
    (lambda b, h, q, kv: (q >= kv) | (kv < 3), None, True),
    (lambda b, h, q, kv: q >= 2 * kv, None, True),
    (lambda b, h, q, kv: q + kv < 50, None, True),
    (lambda b, h, q, kv: q / 3 >= kv / 3, None, True),
]


@pytest.mark.parametrize("mask_mod, window, has_rest", WINDOWS)
def test_kernels_skip_what_is_outside_of_a_window(mask_mod, window, has_rest, monkeypatch):
    asked = []
    monkeypatch.setattr(
        attention, "flash_attention", lambda *_, **options: asked.append(options) or (None, None)
    )
    flex_attention(*values(), block_mask=blocks(mask_mod))
    assert asked[0]["window"] == window
    assert (asked[0]["score_mod"].spec != "") == has_rest
    _, _, q, kv = reference.indices(BATCH, HEADS, LENGTH, LENGTH)
    left, right = (LENGTH if side is None else side for side in window or (None, None))
    seen = mask_mod(*reference.indices(BATCH, HEADS, LENGTH, LENGTH))
    inside = (q - left <= kv) & (kv <= q + right)
    assert not (seen & ~inside).any()
    assert has_rest or torch.equal(seen, inside)


def below(b, h, q_idx, kv_idx):
    return q_idx > kv_idx


class TestBlockMasks:
    def test_rows_that_see_nothing(self, device):
        """The first one, here: its output and gradients are 0, its log-sum-exp is -inf."""
        tensors = inputs(device)
        assert_equals_definition(tensors, None, below)
        out, lse = flex_attention(*tensors, block_mask=blocks(below, device=device), return_lse=True)
        assert (out[:, :, 0] == 0).all()
        assert (lse[:, :, 0] == -math.inf).all()

    def test_blocks_without_a_mask_mod(self, device):
        """Queries 0 to 15 see nothing, 16 to 31 the last keys, and 32 to 47 the first and the last ones."""
        counts = torch.tensor([[[0, 1, 2]]], dtype=torch.int32, device=device)
        columns = torch.tensor([[[[9, 9, 9], [2, 9, 9], [2, 0, 9]]]], dtype=torch.int32, device=device)
        block_mask = BlockMask.from_kv_blocks(counts, columns, BLOCK_SIZE=16)
        shown = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 1]]).bool()
        truth = lambda b, h, q, kv: shown[q // 16, kv // 16]  # noqa: E731
        assert_equals_definition(inputs(device), None, truth, given=(None, block_mask))

    def test_blocks_that_hide_more_and_less_than_their_mask_mod(self):
        """By batch; without those of batch 1 the mask_mod would be all that counts."""
        counts = torch.tensor([1, 1, 1, 3, 3, 3]).int().view(2, 1, 3)
        columns = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 0, 0]] + [[0, 1, 2]] * 3).int().view(2, 1, 3, 3)
        full = torch.tensor([1, 0, 0] * 2).int().view(2, 1, 3), torch.full((2, 1, 3, 3), 2).int()
        block_mask = BlockMask.from_kv_blocks(counts, columns, *full, BLOCK_SIZE=16, mask_mod=below)
        listed = torch.tensor([[[1, 0, 0], [0, 1, 0], [1, 0, 0]], [[1, 1, 1]] * 3]).bool()

        def truth(b, h, q, kv):
            return (listed[b, q // 16, kv // 16] & below(b, h, q, kv)) | ((q < 16) & (kv >= 32))

        assert_equals_definition(values(), None, truth, given=(None, block_mask))

    def test_they_are_compared_with_the_mask_mod_when_something_changes(self, monkeypatch):
        document = torch.arange(LENGTH) // 16
        block_mask = blocks(lambda b, h, q, kv: document[q] == document[kv])
        compared, create_mask = [], pytorchs.create_mask
        monkeypatch.setattr(
            pytorchs, "create_mask", lambda *arguments: compared.append(1) or create_mask(*arguments)
        )
        tensors = values()
        before = flex_attention(*tensors, block_mask=block_mask)
        assert torch.equal(flex_attention(*tensors, block_mask=block_mask), before)
        assert len(compared) == 1
        document.zero_()  # all is one document, but the blocks still are those of three
        torch.testing.assert_close(flex_attention(*tensors, block_mask=block_mask), before)
        assert len(compared) == 2

    def test_a_mask_that_differs_by_head_and_blocks_that_were_made_for_one(self):
        def mask_mod(b, h, q, kv):
            return kv // 16 <= h

        block_mask = blocks(mask_mod, heads=None)
        truth = lambda b, h, q, kv: kv // 16 <= 0 * h  # noqa: E731
        assert_equals_definition(values(), None, truth, given=(None, block_mask))

    def test_a_slice_with_a_mask_mod_of_its_own(self):
        """As in decoding: the second block of queries."""
        block_mask = blocks(causal)[:, :, 1]
        query, key, value = values(length=16, keys=LENGTH)
        with pytest.raises((RuntimeError, ValueError), match=r"sliced|48 queries"):
            flex_attention(query, key, value, block_mask=block_mask)
        block_mask.seq_lengths = (16, LENGTH)
        block_mask.mask_mod = shifted = lambda b, h, q, kv: q + 16 >= kv
        assert_equals_definition([query, key, value], None, shifted, given=(None, block_mask))

    @pytest.mark.parametrize(
        "block_mask, message",
        [
            (lambda: blocks(causal, length=32), "made for 32 queries and 32 keys, the inputs have 48 and 48"),
            (lambda: blocks(causal, keys=64), "made for 48 queries and 64 keys"),
            (lambda: blocks(causal, batch=3), r"\(3, 4, 3\), the inputs have \(2, 4, 3\)"),
            (lambda: blocks(causal, device="meta"), "block_mask is on meta but query is on cpu"),
        ],
    )
    def test_one_for_other_inputs_is_refused(self, block_mask, message):
        with pytest.raises(ValueError, match=message):
            flex_attention(*inputs(), block_mask=block_mask())


# Tensors that are learned.


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
            NotImplementedError, match=r"requires a gradient.*\n.*test_flex_attention.py:\d+: .*bias"
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


# What is refused.


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
        assert "test_flex_attention.py:" in place
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


# The other arguments.


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

    score_mod, mask_mod = alibi_in_a_sliding_window("cpu")
    block_mask, tensors = blocks(mask_mod), inputs()
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
