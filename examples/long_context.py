"""Train on sequences that are spread over several processes, each of which holds a part of every one.

    torchrun --nproc-per-node 2 examples/long_context.py
    torchrun --nproc-per-node 4 examples/long_context.py --length 16384 --check

A sequence that is too long for one process is cut into parts. All of a transformer works on each place of a
text for itself, but for attention, where queries want the keys of the other processes: those go round in a
ring, and are used while the next ones are on their way. `--check` computes a loss in one piece too.

On several machines it is `torchrun --nnodes … --rdzv-endpoint …` with the same program.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from train_gpt import ByteGPT, ours, read

from orchard_jit import distributed


def spread(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention of this process's queries to the keys of all. It is all that a model has to change."""
    return distributed.flash_attention(query, key, value, causal=True)


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats per byte."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(model: ByteGPT, text: torch.Tensor, length: int, steps: int) -> None:
    """Every process sees its part of the same sequences; their gradients are averaged."""
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    # Zigzag: an early piece and a late one for each process, as the late ones see more keys.
    places = distributed.positions(length)
    for step in range(steps):
        started = time.perf_counter()
        window = sequence(text, length, step)
        inputs, targets = (distributed.shard(part, 1) for part in (window[:, :-1], window[:, 1:]))
        loss = loss_of(parallel(inputs, places), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        say(f"step {step:3}  loss {mean(loss):.5f}  {time.perf_counter() - started:.2f} s")


def sequence(text: torch.Tensor, length: int, step: int) -> torch.Tensor:
    """The same in all processes, (1, length + 1)."""
    start = step * length % (len(text) - length)
    return text[None, start : start + length + 1]


def mean(loss: torch.Tensor) -> float:
    """Of all processes."""
    total = loss.detach().clone()
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def check(model: ByteGPT, whole: ByteGPT, text: torch.Tensor, length: int) -> None:
    """The loss of a sequence in parts, and in one piece by the same weights."""
    whole.load_state_dict(model.state_dict())
    window = sequence(text, length, 0)
    inputs, targets = window[:, :-1], window[:, 1:]
    with torch.no_grad():
        own = model(distributed.shard(inputs, 1), distributed.positions(length))
        in_parts = mean(loss_of(own, distributed.shard(targets, 1)))
        in_one = loss_of(whole(inputs), targets).item()
    say(f"\nloss {in_parts:.6f} in {dist.get_world_size()} parts, {in_one:.6f} in one piece")


def say(text: str) -> None:
    """Once, not by every process."""
    if dist.get_rank() == 0:
        print(text, flush=True)


def main() -> None:
    """Train, and check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", type=int, default=4096, help="of the whole sequence (default: 4096)")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2, help="of 64 (default: 2)")
    parser.add_argument("--check", action="store_true", help="compare with one process")
    options = parser.parse_args()

    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model, whole = (
        ByteGPT(attend, options.layers, options.heads, options.length) for attend in (spread, ours)
    )
    parts = dist.get_world_size()
    say(f"{options.length} bytes in {parts} parts of {options.length // parts}\n")
    text = read(None)
    train(model, text, options.length, options.steps)
    if options.check:
        check(model, whole, text, options.length)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
