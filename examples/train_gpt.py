"""Train a small GPT on the bytes of a real text, with this attention and with PyTorch's, side by side.

    python examples/train_gpt.py                 # some two minutes on two cores
    python examples/train_gpt.py --device mps --text my_book.txt --steps 2000

Two models begin with the same weights and see the same batches; only the function that computes attention
differs. So their losses must be one curve, and the plot shows how close they stay. In the end the model that
was trained with ours writes a few lines. The plot needs matplotlib: `pip install 'orchard_jit[plot]'`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import orchard_jit

BYTES = 256
HEAD_DIM = 64

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Causal attention on query, key and value of (batch, heads, length, head_dim)."""


def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """All there is to do to use orchard_jit. The first call compiles; the next process finds it compiled."""
    return orchard_jit.flash_attention(query, key, value, causal=True)


def pytorchs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """What it is compared with."""
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


# The model ------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Every place of a text looks back at the places before it."""

    def __init__(self, attend: Attend, heads: int) -> None:
        super().__init__()
        width = heads * HEAD_DIM
        self.attend, self.heads = attend, heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) -> the same."""
        heads = self.qkv(x).unflatten(-1, (3, self.heads, HEAD_DIM))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # views, which attention reads in place
        mixed: torch.Tensor = self.projection(self.attend(query, key, value).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention, then a perceptron, each added to what comes in."""

    def __init__(self, attend: Attend, heads: int) -> None:
        super().__init__()
        width = heads * HEAD_DIM
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(attend, heads))
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) -> the same."""
        x = x + self.attention(x)
        return x + self.perceptron(x)


class ByteGPT(nn.Module):
    """Predicts the next byte of a text from the `length` bytes before it."""

    def __init__(self, attend: Attend, layers: int, heads: int, length: int) -> None:
        super().__init__()
        width = heads * HEAD_DIM
        self.length = length
        self.bytes, self.positions = nn.Embedding(BYTES, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(attend, heads) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, BYTES))
        nn.init.normal_(self.bytes.weight, std=0.5)
        # Waves to begin with: how far apart two places are is then easy to see, and learnt in fewer steps.
        angles = torch.arange(length)[:, None] * 1e4 ** -torch.linspace(0, 1, width // 2)
        self.positions.weight.data = 0.5 * torch.cat([angles.sin(), angles.cos()], 1)

    def forward(self, text: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        """Bytes (batch, length) -> logits of what comes after each (batch, length, 256).

        `places` says where they stand, if that is not one after the other from the beginning.
        """
        if places is None:
            places = torch.arange(text.shape[1], device=text.device)
        logits: torch.Tensor = self.head(self.blocks(self.bytes(text) + self.positions(places)))
        return logits

    @torch.no_grad()
    def write(self, prompt: bytes, count: int) -> bytes:
        """`count` bytes after the prompt, drawn at random from what the model expects.

        Attention is called with another length each time. No length ever compiles anything.
        """
        device = self.positions.weight.device
        text = torch.tensor([[*prompt]])
        for _ in range(count):
            logits = self(text[:, -self.length :].to(device))[:, -1].cpu()
            text = torch.cat([text, torch.multinomial((logits / 0.7).softmax(-1), 1)], 1)
        return bytes(text[0].tolist())


# Training -------------------------------------------------------------------------------------------------


@dataclass
class Learner:
    """A model in training, and what became of it."""

    name: str
    model: ByteGPT
    steps: int
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 4e-3, total_steps=self.steps)

    def step(self, text: torch.Tensor) -> None:
        """Learn from (batch, length + 1) bytes."""
        started = time.perf_counter()
        logits = self.model(text[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        if len(self.losses) > 1:  # the first step may compile
            self.seconds += time.perf_counter() - started


def read(path: Path | None) -> torch.Tensor:
    """A text as bytes: a file's, or Python's language reference, which every Python carries."""
    if path is not None:
        text = path.read_bytes()
    else:
        from pydoc_data.topics import topics

        text = "\n".join(topics.values()).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def train(learners: list[Learner], text: torch.Tensor, steps: int, batch: int, length: int) -> None:
    """The same batches to all, in turn: a machine that slows down slows all of them."""
    starts = torch.randint(len(text) - length, (steps, batch, 1))
    windows = starts + torch.arange(length + 1)
    print(f"{'step':>6}  {'':5}" + "".join(f"{learner.name:>14}" for learner in learners))
    for number, window in enumerate(windows, 1):
        for learner in learners:
            learner.step(text[window.to(text.device)])
        if number == 1 or number % max(steps // 10, 1) == 0:
            losses = "".join(f"{learner.losses[-1]:14.6f}" for learner in learners)
            print(f"{number:6}  loss {losses}", flush=True)
    print(f"{'all':>6}  time " + "".join(f"{learner.seconds:12.1f} s" for learner in learners))


# The plot -------------------------------------------------------------------------------------------------


def draw(mine: Learner, theirs: Learner, path: Path) -> None:
    """Both losses on top of each other, and below how far they are apart."""
    from matplotlib.figure import Figure

    ink, grey, blue, red = "#22303c", "#b8c2cc", "#1f6fb2", "#c2452d"
    figure = Figure(figsize=(8, 5.4), dpi=160, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = range(1, len(mine.losses) + 1)
    for learner, color, width in ((theirs, grey, 5), (mine, blue, 1.2)):
        label = f"{learner.name}, {learner.seconds:.0f} s"
        above.plot(steps, learner.losses, color=color, linewidth=width, label=label)
    above.set_ylabel("loss (nats per byte)", color=ink)
    above.legend(frameon=False, labelcolor=ink)

    apart = [abs(a - b) or math.nan for a, b in zip(mine.losses, theirs.losses, strict=True)]
    below.plot(steps, apart, ".", color=red, markersize=4)
    below.axhline(torch.finfo(torch.float32).eps * mine.losses[-1], color=ink, linewidth=0.8, linestyle="--")
    below.set_yscale("log")
    below.set_ylim(1e-8, 2 * max(1e-6, *(value for value in apart if value == value)))
    below.set_ylabel("apart", color=ink)
    below.set_xlabel("step (no dot: equal; dashed: what float32 resolves)", color=ink)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(grey)
        axis.tick_params(colors=ink, which="both")
        axis.tick_params(which="minor", length=0)
        axis.grid(axis="y", color=grey, alpha=0.35, linewidth=0.6)
        axis.set_xlim(0, len(steps) + 1)
    figure.align_ylabels()
    title = "A byte-level GPT, trained with two attentions"
    figure.suptitle(title, x=0.01, ha="left", color=ink, weight="bold")
    figure.savefig(path)


def main() -> None:
    """Train, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--text", type=Path, help="a file (default: Python's language reference)")
    parser.add_argument("--device", choices=("cpu", "mps"), default="cpu")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2, help="of 64 (default: 2)")
    parser.add_argument("--write", type=int, default=300, help="bytes to write in the end (default: 300)")
    parser.add_argument("--plot", type=Path, default=Path("train_gpt.png"), metavar="FILE")
    options = parser.parse_args()

    learners = []
    for name, attend in (("orchard_jit", ours), ("PyTorch", pytorchs)):
        torch.manual_seed(0)
        model = ByteGPT(attend, options.layers, options.heads, options.length).to(options.device)
        learners.append(Learner(name, model, options.steps))
    parameters = sum(parameter.numel() for parameter in learners[0].model.parameters())
    text = read(options.text).to(options.device)
    print(f"{parameters / 1e6:.1f} million parameters, {len(text)} bytes of text, on {options.device}\n")
    train(learners, text, options.steps, options.batch, options.length)

    mine, theirs = learners
    apart = max(abs(a - b) for a, b in zip(mine.losses, theirs.losses, strict=True))
    print(f"\nloss {mine.losses[0]:.2f} -> {mine.losses[-1]:.2f}, curves at most {apart:.1e} apart")
    if options.write:
        written = mine.model.write(b"The ", options.write)
        print(f"\n{written.decode(errors='replace')}")
    if find_spec("matplotlib"):
        draw(mine, theirs, options.plot)
        print(f"\ndrawn in {options.plot}")
    else:
        print("\nnot drawn: pip install 'orchard_jit[plot]'")


if __name__ == "__main__":
    main()
