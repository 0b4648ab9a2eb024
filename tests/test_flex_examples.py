"""FlexAttention's published examples as score functions, against PyTorch's `flex_attention` on the CPU.

It has no backward there: gradients of score functions are compared in test_features.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import orchard_jit
from orchard_jit import ScoreMod

BATCH, HEADS, LENGTH, HEAD_DIM = 2, 4, 160, 16
SLOPES = torch.exp2(-torch.arange(1, HEADS + 1).float())
DOCUMENTS = (torch.arange(LENGTH) // 37).int().expand(BATCH, LENGTH).contiguous()

# Ours, for a device; theirs as (score_mod, mask_mod).
EXAMPLES = {
    "ALiBi": (
        lambda device: ScoreMod("score + slope[h] * (kv - q)", slope=SLOPES.to(device)),
        (lambda score, b, h, q, kv: score + SLOPES[h] * (kv - q), None),
    ),
    "soft cap": (
        lambda device: ScoreMod("cap * tanh(score / cap)", cap=2.0),
        (lambda score, b, h, q, kv: 2.0 * torch.tanh(score / 2.0), None),
    ),
    "sliding window": (
        lambda device: ScoreMod(mask="0 <= q - kv <= window", window=20),
        (None, lambda b, h, q, kv: (q >= kv) & (q - kv <= 20)),
    ),
    "prefix of a language model": (
        lambda device: ScoreMod(mask="kv < prefix or kv <= q", prefix=50),
        (None, lambda b, h, q, kv: (kv < 50) | (kv <= q)),
    ),
    "documents": (
        lambda device: ScoreMod(
            mask="document[b, q] == document[b, kv] and kv <= q", document=DOCUMENTS.to(device)
        ),
        (None, lambda b, h, q, kv: (DOCUMENTS[b, q] == DOCUMENTS[b, kv]) & (q >= kv)),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, device):
    ours, (score_mod, mask_mod) = EXAMPLES[name]
    q, k, v = (torch.randn(BATCH, HEADS, LENGTH, HEAD_DIM) for _ in range(3))
    mask = mask_mod and create_block_mask(mask_mod, BATCH, HEADS, LENGTH, LENGTH, device="cpu")
    expected = flex_attention(q, k, v, score_mod=score_mod, block_mask=mask)
    out = orchard_jit.flash_attention(*(x.to(device) for x in (q, k, v)), score_mod=ours(device))
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)
