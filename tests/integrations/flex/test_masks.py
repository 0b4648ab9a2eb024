"""Windows that kernels skip, and blocks."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from torch.nn.attention import flex_attention as pytorchs
from torch.nn.attention.flex_attention import BlockMask

from orchard_jit.integrations.flex import attention, flex_attention

from .cases import BATCH, HEADS, LENGTH, assert_equals_definition, blocks, causal, inputs, values

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
