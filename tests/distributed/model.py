"""A small model with rotary positions, whose attention is given to it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

HEADS, KEY_HEADS, HEAD_DIM, VOCABULARY = 4, 2, 16, 11


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        width = HEADS * HEAD_DIM
        self.embed = nn.Embedding(VOCABULARY, width)
        self.project = nn.Linear(width, (HEADS + 2 * KEY_HEADS) * HEAD_DIM)
        self.predict = nn.Linear(width, VOCABULARY)

    def forward(self, tokens, places, attend):
        """The loss, summed over tokens of which each has to predict itself."""
        heads = self.project(self.embed(tokens)).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
        query, key, value = heads.split((HEADS, KEY_HEADS, KEY_HEADS), dim=1)
        out = attend(rotate(query, places), rotate(key, places), value)
        logits = self.predict(out.transpose(1, 2).flatten(2))
        return functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")


def rotate(heads, places):
    """RoPE (Su et al. 2021, arXiv:2104.09864)."""
    frequencies = 100.0 ** (-torch.arange(HEAD_DIM // 2) / (HEAD_DIM // 2))
    angles = places[:, None] * frequencies
    even, odd = heads.chunk(2, -1)
    return torch.cat((even * angles.cos() - odd * angles.sin(), odd * angles.cos() + even * angles.sin()), -1)


def tokens(length):
    return torch.randint(VOCABULARY, (2, length), generator=torch.Generator().manual_seed(3))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}
