"""The random bits of dropout, by their definition: what the kernels recompute, as a tensor for whoever asks.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011). The key
is a call's seed; the counter of a weight is (key index // 4, query index, head, batch), and its word is
key index % 4.
"""

from __future__ import annotations

import torch

from orchard_jit import call
from orchard_jit.call import Arguments
from orchard_jit.variant import MAX_HEAD_DIM

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF


def draw_seed(device: torch.device) -> torch.Tensor:
    """A key for the random bits of one call.

    It comes from the CPU's generator on every device: activation checkpointing restores that one alone
    for MPS, and must drop the same weights when it computes again.
    """
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64).to(device)


def keep_mask(
    seed: torch.Tensor, dropout_p: float, batch: int, heads: int, query_length: int, key_length: int
) -> torch.Tensor:
    """Which weights a call keeps.

    Args:
        seed: int64 (1), the call's.
        dropout_p: The call's.
        batch, heads, query_length, key_length: The size of the attention matrix.

    Returns:
        bool (batch, heads, query_length, key_length), True where the weight is kept.

    """
    size = (batch, heads, query_length, key_length)
    if dropout_p >= 1:  # the kernels multiply what is left by 0
        return torch.zeros(size, dtype=torch.bool, device=seed.device)
    threshold = int(dropout_p * 2**32)
    rows = torch.arange(query_length, device=seed.device)[:, None]
    quads = torch.arange((key_length + 3) // 4, device=seed.device)[None, :]

    def of_head(b: int, h: int) -> torch.Tensor:
        words = _philox(seed, (quads, rows, torch.full_like(rows, h), torch.full_like(rows, b)))
        return torch.stack([word >= threshold for word in words], -1).flatten(-2)[:, :key_length]

    if batch == 0 or heads == 0:
        return torch.zeros(size, dtype=torch.bool, device=seed.device)
    # One head at a time: the words take far more memory than the mask.
    return torch.stack([of_head(b, h) for b in range(batch) for h in range(heads)]).view(size)


def kept(arguments: Arguments) -> torch.Tensor:
    """The keep-mask of a call, (B, H, Sq, Sk); empty without dropout."""
    query, key = arguments.query, arguments.key
    if arguments.seed is None:
        return torch.empty(0, dtype=torch.bool, device=query.device)
    batch, heads, length = query.shape[:3]
    return keep_mask(arguments.seed, arguments.dropout, batch, heads, length, key.shape[2])


def probabilities(arguments: Arguments) -> torch.Tensor:
    """The attention matrix of a call, negative where a weight was dropped; empty without dropout.

    The kernels give it themselves, so every feature is in it: with columns of the identity as values, the
    output is columns of the matrix.
    """
    query, key = arguments.query, arguments.key
    if not arguments.dropout:
        return query.new_empty(0)
    with torch.no_grad():
        identity = torch.eye(key.shape[2], dtype=key.dtype, device=key.device)
        parts = [
            call.forward(
                arguments._replace(value=columns.expand(*key.shape[:2], -1, -1), dropout=0.0, seed=None)
            )[0]
            for columns in identity.split(MAX_HEAD_DIM, dim=1)
        ]
        matrix = torch.cat([part.contiguous() for part in parts], dim=-1)
        return torch.where(kept(arguments), matrix, -matrix)


def _philox(seed: torch.Tensor, counter: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Four words of 32 bits, as int64, for each counter."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    keys = [seed & _LOW, (seed >> 32) & _LOW]
    for _ in range(_ROUNDS):
        high_0, low_0 = _product(_MULTIPLIERS[0], c0)
        high_1, low_1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ keys[0], low_1, high_0 ^ c3 ^ keys[1], low_0
        keys = [(key + step) & _LOW for key, step in zip(keys, _KEY_STEPS, strict=True)]
    return c0, c1, c2, c3


def _product(multiplier: int, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The high and the low half of a product of two words. int64 wraps, which keeps its bits right."""
    product = multiplier * word
    return (product >> 32) & _LOW, product & _LOW
