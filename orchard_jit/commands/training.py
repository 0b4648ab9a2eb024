"""A small byte-level GPT, trained twice: the same weights, batches and steps with two attentions."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Causal attention on (batch, heads, length, head_dim)."""

STEPS = 60
LENGTH, BATCH = 256, 4
LAYERS, HEADS, HEAD_DIM = 2, 2, 64
LEARNING_RATE = 1e-3
BYTES = 256


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on a normalised residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor, attend: Attention) -> torch.Tensor:
        """(batch, length, width) -> the same."""
        heads = self.qkv(self.attention_norm(x)).unflatten(-1, (3, HEADS, HEAD_DIM))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # views: nothing is copied for the attention
        x = x + self.projection(attend(query, key, value).transpose(1, 2).flatten(-2))
        mixed: torch.Tensor = self.perceptron(self.perceptron_norm(x))
        return x + mixed


class ByteGPT(nn.Module):
    """Predicts the next byte of a text."""

    def __init__(self) -> None:
        super().__init__()
        width = HEADS * HEAD_DIM
        self.bytes, self.positions = nn.Embedding(BYTES, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, BYTES, bias=False)
        self.head.weight = self.bytes.weight
        nn.init.normal_(self.bytes.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def loss(self, text: torch.Tensor, attend: Attention) -> torch.Tensor:
        """Mean cross-entropy, in nats a byte, of the rows of (batch, LENGTH + 1) bytes."""
        x = self.bytes(text[:, :-1]) + self.positions.weight
        for block in self.blocks:
            x = block(x, attend)
        return functional.cross_entropy(self.head(self.norm(x)).flatten(0, 1), text[:, 1:].flatten())


@dataclass
class Run:
    """One training: the loss of each step, and the seconds that all took."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


class Learner:
    """A model in training, with the attention that it uses."""

    def __init__(self, model: ByteGPT, attend: Attention) -> None:
        self.model, self.attend = model, attend
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        self.run = Run()

    def step(self, text: torch.Tensor) -> None:
        """One step of gradient descent on (batch, LENGTH + 1) bytes."""
        started = time.perf_counter()
        loss = self.model.loss(text, self.attend)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.run.losses.append(loss.item())  # also waits for the device
        self.run.seconds += time.perf_counter() - started


def train(attentions: Sequence[Attention], device: str, steps: int, tell: Callable[[int], None]) -> list[Run]:
    """Train equal models side by side, step by step, so that a noisy machine slows all of them alike.

    Args:
        attentions: The attention of each model.
        device: Where to train.
        steps: How many steps.
        tell: Called after each step with the number of steps done.

    Returns:
        The run of each model.

    """
    text = corpus().to(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ByteGPT()
        starts = torch.randint(len(text) - LENGTH, (steps, BATCH, 1))
    windows = (starts + torch.arange(LENGTH + 1)).to(device)
    learners = [Learner(copy.deepcopy(model).to(device), attend) for attend in attentions]
    for done, window in enumerate(windows, 1):
        for learner in learners if done % 2 else reversed(learners):  # neither always goes first
            learner.step(text[window])
        tell(done)
    return [learner.run for learner in learners]


def corpus() -> torch.Tensor:
    """Real text that every Python carries: its language reference, as bytes."""
    from pydoc_data.topics import topics

    return torch.frombuffer(bytearray("\n".join(topics.values()).encode()), dtype=torch.uint8).long()
