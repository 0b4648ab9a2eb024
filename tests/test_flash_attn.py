"""flash-attn's functions do what flash-attn documents, against a definition in float64 written from there."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import reference
import torch

import orchard_jit
from orchard_jit import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    keep_mask,
)
from orchard_jit.dropout import draw_seed

BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 16
LENGTHS = ((6, 6), (5, 9), (9, 5))
SLOPES = {"heads": torch.rand(HEADS), "batches and heads": torch.rand(BATCH, HEADS)}
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "scale": {"softmax_scale": 0.4},
    "window": {"window_size": (3, 1)},
    "window to the left": {"window_size": (2, -1)},
    "window to the right": {"window_size": (-1, 1)},
    "causal window": {"causal": True, "window_size": (2, 5)},
    "softcap": {"softcap": 2.0, "causal": True},
    "ALiBi": {"alibi_slopes": SLOPES["heads"], "causal": True},
    "ALiBi by batch": {"alibi_slopes": SLOPES["batches and heads"]},
    "all": {"softcap": 2.0, "alibi_slopes": SLOPES["heads"], "causal": True, "window_size": (4, 0)},
}


def definition(
    q,
    k,
    v,
    *,
    causal=False,
    window_size=(-1, -1),
    softcap=0.0,
    alibi_slopes=None,
    softmax_scale=None,
    keep=None,
    dropout_p=0.0,
):
    """Of one sequence, (S, H, D): output, log-sum-exp (H, Sq), and weights (H, Sq, Sk) before dropout."""
    q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    (heads, sq, _), sk = q.shape, k.shape[1]
    k, v = (x.repeat_interleave(heads // x.shape[0], 0) for x in (k, v))
    scores = (q @ k.mT) * (softmax_scale or 1 / math.sqrt(q.shape[-1]))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    # Query i stands at key i + Sk - Sq.
    distance = torch.arange(sk)[None, :] - (torch.arange(sq)[:, None] + sk - sq)
    if alibi_slopes is not None:
        scores = scores - alibi_slopes.double()[:, None, None] * distance.abs()
    left, right = window_size
    right = 0 if causal else right
    seen = torch.ones(sq, sk, dtype=torch.bool)
    if left >= 0:
        seen &= distance >= -left
    if right >= 0:
        seen &= distance <= right
    scores = scores.masked_fill(~seen, -math.inf)
    blind = ~seen.any(-1, keepdim=True)
    weights = torch.softmax(scores.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
    lse = torch.logsumexp(scores, -1)
    kept = weights if keep is None else weights * keep / (1 - dropout_p)
    return (kept @ v).transpose(0, 1), lse, weights


def batched(q, k, v, *, alibi_slopes=None, keep=None, **options):
    """(B, S, H, D), sequence by sequence."""
    results = []
    for b in range(q.shape[0]):
        slopes = alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[b]
        kept = None if keep is None else keep[b]
        results.append(definition(q[b], k[b], v[b], alibi_slopes=slopes, keep=kept, **options))
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


def tensors(*shapes, device):
    return [torch.randn(shape).to(device).requires_grad_() for shape in shapes]


def exact(tensors):
    return [x.detach().cpu().double().requires_grad_() for x in tensors]


def on(device, options):
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}


def check(out, leaves, expected, exact_leaves):
    """Output, and the gradients of all."""
    weights = torch.randn(expected.shape, dtype=torch.float64)
    grads = torch.autograd.grad(out, leaves, weights.float().to(out.device))
    wanted = torch.autograd.grad(expected, exact_leaves, weights)
    for actual, right in zip((out, *grads), (expected.detach(), *wanted), strict=True):
        torch.testing.assert_close(actual.detach().cpu().double(), right, rtol=1e-4, atol=2e-5)


def q_k_v(sq, sk, device, batch=BATCH):
    return tensors((batch, sq, HEADS, DIM), *((batch, sk, KV_HEADS, DIM),) * 2, device=device)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("sq", "sk"), LENGTHS)
def test_flash_attn_func(device, sq, sk, options):
    leaves = q_k_v(sq, sk, device)
    exact_leaves = exact(leaves)
    expected, lse, _ = batched(*exact_leaves, **options)
    out, actual_lse, probabilities = flash_attn_func(*leaves, **on(device, options), return_attn_probs=True)
    check(out, leaves, expected, exact_leaves)
    torch.testing.assert_close(actual_lse.detach().cpu().double(), lse.detach(), rtol=1e-4, atol=1e-5)
    assert probabilities.numel() == 0
    assert torch.equal(flash_attn_func(*leaves, **on(device, options), deterministic=True), out)


def test_rows_that_see_no_key_give_zero(device):
    q, k, v = q_k_v(9, 5, device)
    out, lse, _ = flash_attn_func(q, k, v, causal=True, return_attn_probs=True)
    assert (out[:, :4] == 0).all()
    assert (lse[:, :, :4] == -math.inf).all()
    assert (out[:, 4:] != 0).any()


@pytest.mark.parametrize("options", ("plain", "all"))
def test_dropout_and_the_probabilities(device, options):
    """Their signs say what was dropped; without dropout there are none."""
    options = OPTIONS[options]
    leaves = q_k_v(5, 9, device)
    out, _, signed = flash_attn_func(*leaves, 0.4, **on(device, options), return_attn_probs=True)
    assert not signed.requires_grad
    keep = (~torch.signbit(signed)).cpu()
    exact_leaves = exact(leaves)
    expected, _, weights = batched(*exact_leaves, keep=keep, dropout_p=0.4, **options)
    check(out, leaves, expected, exact_leaves)
    torch.testing.assert_close(signed.abs().cpu().double(), weights.detach(), rtol=1e-4, atol=1e-5)
    assert 0.4 < keep.double().mean() < 0.8


def test_probabilities_of_more_keys_than_the_widest_head():
    q, k, v = (torch.randn(1, n, 1, DIM) for n in (3, 700, 700))
    _, _, signed = flash_attn_func(q, k, v, 0.5, return_attn_probs=True)
    torch.testing.assert_close(signed.abs().sum(-1), torch.ones(1, 1, 3))


def test_packed_inputs_are_views_of_one_tensor(device):
    qkv = torch.randn(BATCH, 7, 3, HEADS, DIM, device=device, requires_grad=True)
    out = flash_attn_qkvpacked_func(qkv, 0.0, 0.4, True, (3, 0))
    expected = flash_attn_func(*qkv.unbind(2), 0.0, 0.4, True, (3, 0))
    assert torch.equal(out, expected)
    assert torch.equal(*(torch.autograd.grad(x.sum(), qkv)[0] for x in (out, expected)))

    q, kv = tensors((BATCH, 5, HEADS, DIM), (BATCH, 7, 2, KV_HEADS, DIM), device=device)
    assert torch.equal(
        flash_attn_kvpacked_func(q, kv, causal=True), flash_attn_func(q, *kv.unbind(2), causal=True)
    )


SIGNATURES = {
    flash_attn_func: """
        q k v dropout_p softmax_scale causal window_size softcap alibi_slopes deterministic return_attn_probs
        """,
    flash_attn_varlen_func: """
        q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k dropout_p softmax_scale causal
        window_size softcap alibi_slopes deterministic return_attn_probs block_table
        """,
    flash_attn_with_kvcache: """
        q k_cache v_cache k v rotary_cos rotary_sin cache_seqlens cache_batch_idx cache_leftpad block_table
        softmax_scale causal window_size softcap rotary_interleaved alibi_slopes num_splits return_softmax_lse
        """,
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__name__)
def test_arguments_have_the_order_of_flash_attn(function):
    parameters = inspect.signature(function).parameters.values()
    assert [parameter.name for parameter in parameters] == SIGNATURES[function].split()
    assert all(parameter.kind == parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window_size": (1, 2, 3)}, ValueError, "window must be"),
        ({"window_size": (-7, 0)}, ValueError, "window must be two integers from 0 on"),
        ({"softcap": -1.0}, ValueError, "cap must be positive, got -1.0"),
        ({"dropout_p": 1.5}, ValueError, "dropout must be 0 to 1, got 1.5"),
        ({"alibi_slopes": torch.rand(3)}, ValueError, r"alibi_slopes must be .*got \(3,\)"),
        ({"alibi_slopes": torch.rand(3, HEADS)}, ValueError, r"alibi_slopes must be .*got \(3, 4\)"),
        ({"alibi_slopes": torch.rand(1, 1, HEADS)}, ValueError, r"alibi_slopes must be .*got \(1, 1, 4\)"),
        ({"alibi_slopes": torch.rand(HEADS, requires_grad=True)}, NotImplementedError, "requires a gradient"),
    ],
)
def test_flash_attn_func_refuses(options, error, message):
    with pytest.raises(error, match=message):
        flash_attn_func(*q_k_v(5, 5, "cpu"), **options)


class TestPackedSequences:
    queries, keys = (5, 0, 9, 3), (7, 4, 0, 3)

    @staticmethod
    def offsets(lengths, device="cpu"):
        return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)

    def inputs(self, device):
        return tensors(
            (sum(self.queries), HEADS, DIM), *((sum(self.keys), KV_HEADS, DIM),) * 2, device=device
        )

    def call(self, leaves, *args, **options):
        device = leaves[0].device
        return flash_attn_varlen_func(
            *leaves,
            self.offsets(self.queries, device),
            self.offsets(self.keys, device),
            9,
            7,
            *args,
            **options,
        )

    def expected(self, leaves, *, alibi_slopes=None, keep=None, **options):
        q, k, v = (
            x.split(lengths) for x, lengths in zip(leaves, (self.queries, self.keys, self.keys), strict=True)
        )
        outs, lses = [], []
        for b, (sq, sk) in enumerate(zip(self.queries, self.keys, strict=True)):
            slopes = alibi_slopes if alibi_slopes is None or alibi_slopes.dim() == 1 else alibi_slopes[b]
            kept = None if keep is None else keep[b, :, :sq, :sk]
            out, lse, _ = definition(q[b], k[b], v[b], alibi_slopes=slopes, keep=kept, **options)
            outs.append(out)
            lses.append(lse)
        return torch.cat(outs), torch.cat(lses, 1)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"causal": True},
            {"window_size": (2, 1)},
            {"softcap": 2.0, "causal": True},
            {"alibi_slopes": torch.rand(4, HEADS)},
        ],
        ids=lambda options: " ".join(options) or "plain",
    )
    def test_each_attends_to_itself(self, device, options):
        leaves = self.inputs(device)
        exact_leaves = exact(leaves)
        expected, lse = self.expected(exact_leaves, **options)
        out, actual_lse, _ = self.call(leaves, **on(device, options), return_attn_probs=True)
        check(out, leaves, expected, exact_leaves)
        torch.testing.assert_close(actual_lse.detach().cpu().double(), lse.detach(), rtol=1e-4, atol=1e-5)

    def test_dropout(self, device):
        leaves = self.inputs(device)
        torch.manual_seed(5)
        out = self.call(leaves, 0.4, causal=True)
        torch.manual_seed(5)
        keep = keep_mask(draw_seed(out.device), 0.4, 4, HEADS, 9, 7).cpu()
        exact_leaves = exact(leaves)
        expected, _ = self.expected(exact_leaves, causal=True, keep=keep, dropout_p=0.4)
        check(out, leaves, expected, exact_leaves)

    def test_no_sequences(self, device):
        q = torch.zeros(0, HEADS, DIM, device=device, requires_grad=True)
        offsets = self.offsets((), device)
        out = flash_attn_varlen_func(q, q, q, offsets, offsets, 0, 0)
        assert out.shape == q.shape
        assert torch.autograd.grad(out.sum(), q)[0].shape == q.shape

    @pytest.mark.parametrize(
        ("name", "offsets", "error", "message"),
        [
            ("cu_seqlens_q", [1, 5, 5, 14, 17], ValueError, "_q must begin with 0, got 1"),
            ("cu_seqlens_q", [0, 6, 5, 14, 17], ValueError, "_q must not fall, got 6 at 1 and 5 at 2"),
            (
                "cu_seqlens_q",
                [0, 5, 5, 14, 16],
                ValueError,
                "_q must end with the number of queries, 17, got 16",
            ),
            (
                "cu_seqlens_k",
                [0, 7, 11, 11, 15],
                ValueError,
                "_k must end with the number of keys, 14, got 15",
            ),
            ("cu_seqlens_q", [0, 5, 5, 17, 17], ValueError, "_q has a sequence of 12 rows at 2, but .* 9"),
            ("cu_seqlens_k", [0, 0, 11, 11, 14], ValueError, "_k has a sequence of 11 rows at 1, but .* 7"),
            ("cu_seqlens_k", [0, 7, 14], ValueError, r"_k must have shape \[5\], got \[3\]"),
            ("cu_seqlens_q", [[0, 17]], ValueError, r"_q must have shape \[sequences \+ 1\]"),
            ("cu_seqlens_q", [], ValueError, r"_q must have shape \[sequences \+ 1\]"),
            ("cu_seqlens_q", torch.tensor([0, 5, 5, 14, 17]), TypeError, "_q must be Int, got Long"),
        ],
        ids=str,
    )
    def test_bad_offsets_are_named(self, device, name, offsets, error, message):
        given = {"cu_seqlens_q": self.offsets(self.queries), "cu_seqlens_k": self.offsets(self.keys)}
        given[name] = (
            offsets if isinstance(offsets, torch.Tensor) else torch.tensor(offsets, dtype=torch.int32)
        )
        with pytest.raises(error, match=f"cu_seqlens{message}"):
            flash_attn_varlen_func(*self.inputs(device), **on(device, given), max_seqlen_q=9, max_seqlen_k=7)

    def test_offsets_are_looked_at_again_once_they_are_written_to(self, device):
        q = self.inputs(device)[0]
        offsets = self.offsets(self.queries, device)
        flash_attn_varlen_func(q, q, q, offsets, offsets, 9, 9)
        offsets[1] = 15
        with pytest.raises(ValueError, match="cu_seqlens_q"):
            flash_attn_varlen_func(q, q, q, offsets, offsets, 9, 9)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"block_table": torch.zeros(1)}, "block_table"),
            ({"dropout_p": 0.1, "return_attn_probs": True}, "return_attn_probs"),
        ],
    )
    def test_what_is_not_supported_says_so(self, options, message):
        with pytest.raises(NotImplementedError, match=message):
            self.call(self.inputs("cpu"), **options)

    @pytest.mark.parametrize("shape", [(3,), (2, HEADS), (4, 3)], ids=str)
    def test_slopes_are_of_heads_or_of_sequences_and_heads(self, shape):
        with pytest.raises(ValueError, match="alibi_slopes must be"):
            self.call(self.inputs("cpu"), alibi_slopes=torch.rand(shape))


class TestCache:
    capacity, new = 12, 3
    used = (4, 9)

    def caches(self, device, capacity=capacity):
        return [torch.randn(BATCH, capacity, KV_HEADS, DIM, device=device) for _ in range(2)]

    def rows(self, device, heads=KV_HEADS):
        return torch.randn(BATCH, self.new, heads, DIM, device=device)

    @staticmethod
    def expected(q, k_cache, v_cache, lengths, **options):
        slopes = options.pop("alibi_slopes", None)
        outs, lses = [], []
        for b, length in enumerate(lengths):
            parts = (x[b].cpu().double() for x in (q, k_cache[:, :length], v_cache[:, :length]))
            slope = slopes if slopes is None or slopes.dim() == 1 else slopes[b]
            out, lse, _ = definition(*parts, alibi_slopes=slope, **options)
            outs.append(out)
            lses.append(lse)
        return torch.stack(outs), torch.stack(lses)

    @pytest.mark.parametrize("options", ("plain", "causal", "window", "softcap", "ALiBi by batch"))
    def test_attends_to_the_rows_in_use(self, device, options):
        """The last query stands at each sequence's last key in use."""
        options = OPTIONS[options]
        q, (k_cache, v_cache) = self.rows(device, HEADS), self.caches(device)
        lengths = torch.tensor(self.used, dtype=torch.int32, device=device)
        out, lse = flash_attn_with_kvcache(
            q, k_cache, v_cache, cache_seqlens=lengths, **on(device, options), return_softmax_lse=True
        )
        expected, expected_lse = self.expected(q, k_cache, v_cache, self.used, **options)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=1e-4, atol=1e-5)

    def test_new_rows_are_written_behind_them_first(self, device):
        q, k, v = self.rows(device, HEADS), self.rows(device), self.rows(device)
        k_cache, v_cache = self.caches(device)
        lengths = torch.tensor(self.used, dtype=torch.int32, device=device)
        written = [(cache.clone(), rows) for cache, rows in ((k_cache, k), (v_cache, v))]
        out = flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=lengths, causal=True)
        assert lengths.tolist() == list(self.used)
        for cache, (before, rows) in zip((k_cache, v_cache), written, strict=True):
            for b, length in enumerate(self.used):
                before[b, length : length + self.new] = rows[b]
            assert torch.equal(cache, before)
        after = [length + self.new for length in self.used]
        expected, _ = self.expected(q, k_cache, v_cache, after, causal=True)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("given", "length"), [(None, 12), (5, 5), (0, 0)])
    def test_one_number_for_all_or_none(self, device, given, length):
        q, (k_cache, v_cache) = self.rows(device, HEADS), self.caches(device)
        out = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=given)
        expected, _ = self.expected(q, k_cache, v_cache, [length] * BATCH)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("options", ("causal", "window", "softcap", "ALiBi"))
    def test_one_query_and_many_keys(self, device, options):
        """What a generating model asks for."""
        options = OPTIONS[options]
        q, (k_cache, v_cache) = torch.randn(BATCH, 1, HEADS, DIM, device=device), self.caches(device, 1200)
        lengths = torch.tensor((700, 1200), dtype=torch.int32, device=device)
        out = flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=lengths, **on(device, options))
        expected, _ = self.expected(q, k_cache, v_cache, (700, 1200), **options)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"cache_seqlens": 13}, ValueError, "cache_seqlens must be 0 to 12, .* got 13"),
            ({"cache_seqlens": [4, 13]}, ValueError, "must be 0 to 12, .* got 13"),
            ({"cache_seqlens": [4, -1]}, ValueError, "must be 0 to 12, .* got -1"),
            (
                {"cache_seqlens": [4, 9, 2]},
                ValueError,
                r"cache_seqlens must be int32 and have shape \[2\], got \[3\]",
            ),
            ({"cache_seqlens": torch.tensor([4, 9])}, ValueError, "cache_seqlens .* of torch.int64"),
            (
                {"cache_seqlens": [4, 10], "k": 3, "v": 3},
                ValueError,
                "3 new rows don't fit behind 10 .* 12 rows",
            ),
            ({"cache_seqlens": [4, -1], "k": 3, "v": 3}, ValueError, "must be 0 to 12, .* got -1"),
            (
                {"cache_seqlens": [4, 9, 2], "k": 3, "v": 3},
                ValueError,
                r"must be int32 and have shape \[2\], got \[3\]",
            ),
            ({"k": 3, "v": 3}, ValueError, "belong together"),
            ({"k": 3, "cache_seqlens": 4}, ValueError, "belong together"),
            (
                {"k": 3, "v": 2, "cache_seqlens": 4},
                ValueError,
                r"v must be \(2, 3, 2, 16\), got \(2, 2, 2, 16\)",
            ),
            ({"rotary_cos": torch.ones(1)}, NotImplementedError, "rotary_cos is not supported"),
            ({"cache_batch_idx": torch.ones(1)}, NotImplementedError, "cache_batch_idx is not supported"),
            ({"cache_leftpad": torch.ones(1)}, NotImplementedError, "cache_leftpad is not supported"),
            ({"block_table": torch.ones(1)}, NotImplementedError, "block_table is not supported"),
        ],
        ids=str,
    )
    def test_refused_before_anything_is_written(self, options, error, message):
        q, (k_cache, v_cache) = self.rows("cpu", HEADS), self.caches("cpu")
        before = k_cache.clone()
        for name in options.keys() & {"k", "v"}:
            options = {**options, name: torch.randn(BATCH, options[name], KV_HEADS, DIM)}
        if isinstance(options.get("cache_seqlens"), list):
            options = {**options, "cache_seqlens": torch.tensor(options["cache_seqlens"], dtype=torch.int32)}
        with pytest.raises(error, match=message):
            flash_attn_with_kvcache(q, k_cache, v_cache, **options)
        assert torch.equal(k_cache, before)

    def test_no_gradient_flows(self):
        q, (k_cache, v_cache) = self.rows("cpu", HEADS).requires_grad_(), self.caches("cpu")
        assert not flash_attn_with_kvcache(q, k_cache, v_cache).requires_grad


def test_the_definition_is_the_suites_reference():
    """The yardstick itself."""
    q, k, v = exact(q_k_v(5, 9, "cpu"))
    expected, lse, _ = batched(q, k, v, causal=True)
    out, lse_2 = reference.attention(*(x.transpose(1, 2) for x in (q, k, v)), causal="lower_right")
    torch.testing.assert_close(out.transpose(1, 2), expected)
    torch.testing.assert_close(lse_2, lse)


def test_what_is_exported():
    assert {name for name in orchard_jit.__all__ if name.startswith("flash_attn_")} == {
        "flash_attn_func",
        "flash_attn_fwd",
        "flash_attn_kvpacked_func",
        "flash_attn_qkvpacked_func",
        "flash_attn_varlen_func",
        "flash_attn_with_kvcache",
    }
