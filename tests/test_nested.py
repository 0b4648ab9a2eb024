"""Nested tensors of layout jagged: each sequence is what it would be alone."""

from __future__ import annotations

import pytest
import reference
import torch
import torch.nn.functional as F  # noqa: N812

from orchard_jit import ScoreMod, flash_attention, keep_mask, scaled_dot_product_attention
from orchard_jit.dropout import draw_seed

HEADS, KV_HEADS, DIM = 4, 2, 16
QUERIES, KEYS = (5, 0, 9, 3), (7, 4, 1, 3)


def jagged(parts, device="cpu"):
    """(B, H, sequence, D) of parts (sequence, H, D), as projections give it, and the leaf behind it."""
    leaf = torch.nested.nested_tensor(parts, layout=torch.jagged, device=device, requires_grad=True)
    return leaf, leaf.transpose(1, 2)


def sequences(lengths, heads, dim=DIM):
    return [torch.randn(length, heads, dim) for length in lengths]


def check(device, theirs=None, queries=QUERIES, keys=KEYS, **ours):
    """Output, log-sum-exp and gradients against the definition of every sequence. `theirs`: its options."""
    parts = [sequences(queries, HEADS), sequences(keys, KV_HEADS), sequences(keys, KV_HEADS)]
    leaves, inputs = zip(*(jagged(part, device) for part in parts), strict=True)
    if queries == keys:  # as from one projection: PyTorch knows one structure by its offsets
        offsets = leaves[0].offsets()
        leaves = [
            torch.nested.nested_tensor_from_jagged(x.values().detach(), offsets).requires_grad_()
            for x in leaves
        ]
        inputs = [leaf.transpose(1, 2) for leaf in leaves]
    out, lse = flash_attention(*inputs, **ours, return_lse=True)
    weights = [torch.randn(HEADS, length, DIM) for length in queries]
    loss = sum((x * weight.to(device)).sum() for x, weight in zip(out.unbind(), weights, strict=True))
    grads = torch.autograd.grad(loss, leaves)

    for b, (rows, *_) in enumerate(zip(*parts, strict=True)):
        query, key, value = (part[b].transpose(0, 1)[None] for part in parts)
        options = theirs(b) if callable(theirs) else theirs or {}
        expected = reference.result(query, key, value, weights[b][None], **options)
        assert rows.shape[0] == out.unbind()[b].shape[1]
        close(out.unbind()[b], expected.out[0])
        close(lse.unbind()[b], expected.lse[0])
        for grad, wanted in zip(grads, expected.grads, strict=True):
            close(grad.unbind()[b].transpose(0, 1), wanted[0])


def close(actual, wanted):
    torch.testing.assert_close(actual.detach().cpu().double(), wanted, rtol=1e-4, atol=1e-5)


def test_each_sequence_attends_to_itself(device):
    check(device)


@pytest.mark.parametrize("alignment", ("upper_left", "lower_right"))
def test_causal_by_each_sequences_own_lengths(device, alignment):
    check(device, {"causal": alignment}, causal=alignment)
    check(device, {"causal": alignment}, causal=True, alignment=alignment)


def test_causal_needs_no_alignment_where_the_lengths_are_equal(device):
    check(device, {"causal": "upper_left"}, queries=QUERIES, keys=QUERIES, causal=True)


def test_causal_is_ambiguous_where_they_differ():
    inputs = [jagged(sequences(lengths, 2))[1] for lengths in (QUERIES, KEYS, KEYS)]
    with pytest.raises(ValueError, match="the diagonal is ambiguous for sequences of different lengths"):
        flash_attention(*inputs, causal=True)


def test_window_and_scale(device):
    theirs = {"window": (3, 1), "alignment": "lower_right", "scale": 0.3}
    check(device, theirs, window=(3, 1), alignment="lower_right", scale=0.3)


def test_softcap_and_slopes(device):
    slopes = torch.rand(len(QUERIES), HEADS)

    def theirs(b):
        def score(s, _, h, q, kv):
            place = q + KEYS[b] - QUERIES[b]
            return 2 * torch.tanh(s / 2) - slopes[b].double()[h] * (place - kv).abs()

        return {"score": score}

    check(device, theirs, softcap=2.0, alibi_slopes=slopes.to(device), alignment="lower_right")


def test_a_score_mod_knows_its_sequence(device):
    mod = ScoreMod("score * (1 + b) + kv", mask="kv < kv_len - 1 or q == q_len - 1")

    def theirs(b):
        return {
            "score": lambda s, _, h, q, kv: s * (1 + b) + kv,
            "visible": lambda _, h, q, kv: (kv < KEYS[b] - 1) | (q == QUERIES[b] - 1),
        }

    check(device, theirs, score_mod=mod)


def test_sinks(device):
    sinks = torch.randn(HEADS)
    check(device, {"sinks": sinks.double()}, sinks=sinks.to(device))


def test_dropout(device):
    torch.manual_seed(3)
    keep = keep_mask(draw_seed(torch.device(device)), 0.4, len(QUERIES), HEADS, max(QUERIES), max(KEYS)).cpu()

    def theirs(b):
        return {"keep": keep[b : b + 1, :, : QUERIES[b], : KEYS[b]], "dropout_p": 0.4}

    parts = [sequences(QUERIES, HEADS), sequences(KEYS, KV_HEADS), sequences(KEYS, KV_HEADS)]
    inputs = [jagged(part, device)[1] for part in parts]
    torch.manual_seed(3)
    out = flash_attention(*inputs, dropout_p=0.4)
    for b, actual in enumerate(out.unbind()):
        query, key, value = (part[b].transpose(0, 1)[None].double() for part in parts)
        close(actual, reference.attention(query, key, value, **theirs(b))[0][0])


def test_the_output_has_the_structure_of_the_query():
    query, key, value = (jagged(sequences(lengths, 2))[1] for lengths in (QUERIES, KEYS, KEYS))
    out, lse = flash_attention(query, key, value, return_lse=True)
    assert out.shape == query.shape
    assert (out + query).shape == query.shape
    assert lse.shape == query.shape[:-1]


def test_scaled_dot_product_attention_is_pytorchs():
    leaf, query = jagged(sequences((5, 9, 3), 2))
    ours = scaled_dot_product_attention(query, query, query)
    theirs = F.scaled_dot_product_attention(query, query, query)
    for pair in zip(ours.unbind(), theirs.unbind(), strict=True):
        torch.testing.assert_close(*pair)
    grads = (
        torch.autograd.grad(x.values().sin().sum(), leaf, retain_graph=True)[0].values()
        for x in (ours, theirs)
    )
    torch.testing.assert_close(*grads)


def test_no_sequences():
    offsets = torch.zeros(1, dtype=torch.int64)
    query = torch.nested.nested_tensor_from_jagged(torch.zeros(0, 2, DIM), offsets).transpose(1, 2)
    assert flash_attention(query, query, query).shape[0] == 0


class TestErrors:
    query = jagged(sequences(QUERIES, 2))[1].detach()

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"mask": torch.ones(1, dtype=torch.bool)}, "mask"),
            ({"bias": torch.ones(1)}, "bias"),
            ({"key_lengths": torch.tensor([3])}, "key_lengths"),
        ],
    )
    def test_what_has_no_place_in_packed_sequences(self, options, name):
        with pytest.raises(NotImplementedError, match=f"{name} can't be combined with nested tensors"):
            flash_attention(self.query, self.query, self.query, **options)

    def test_a_dense_tensor_beside_a_nested_one(self):
        dense = torch.randn(4, 2, 9, DIM)
        with pytest.raises(ValueError, match=r"key must be a nested tensor of layout torch\.jagged"):
            flash_attention(self.query, dense, dense)
        with pytest.raises(ValueError, match=r"query must be a nested tensor of layout torch\.jagged"):
            flash_attention(dense, self.query, self.query)

    def test_the_layout_of_old(self):
        old = torch.nested.nested_tensor(sequences(QUERIES, 2))
        with pytest.raises(ValueError, match=r"query must be a nested tensor of layout torch\.jagged"):
            flash_attention(old, old, old)

    def test_another_dimension_is_ragged(self):
        heads_last = self.query.transpose(1, 2)
        with pytest.raises(ValueError, match=r"query must be \(batch, heads, sequence, head_dim\)"):
            flash_attention(heads_last, heads_last, heads_last)

    def test_holes(self):
        narrow = torch.nested.narrow(
            torch.randn(2, 9, 2, DIM), 1, torch.tensor([0, 2]), torch.tensor([3, 4]), layout=torch.jagged
        ).transpose(1, 2)
        with pytest.raises(NotImplementedError, match="query has holes between its sequences"):
            flash_attention(narrow, narrow, narrow)

    def test_another_number_of_sequences(self):
        fewer = jagged(sequences((5, 9), 2))[1]
        with pytest.raises(ValueError, match="key has 2 sequences but query has 4"):
            flash_attention(self.query, fewer, fewer)

    def test_key_and_value_of_different_lengths(self):
        key, value = (jagged(sequences(lengths, 2))[1] for lengths in ((5, 0, 9, 3), (3, 9, 0, 5)))
        with pytest.raises(ValueError, match="key and value must have sequences of the same lengths"):
            flash_attention(self.query, key, value)
