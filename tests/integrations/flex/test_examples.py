"""The published examples."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import flex_attention as pytorchs
from torch.nn.attention.flex_attention import and_masks, or_masks

from orchard_jit.integrations.flex import flex_attention

from .cases import (
    BATCH,
    CLOSE,
    HEADS,
    LENGTH,
    assert_equals_definition,
    blocks,
    causal,
    inputs,
    values,
)


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
