"""The CPU kernels against PyTorch's own attention: every kind of call, with the ratio that each should reach.

    python bench/cpu.py > bench/results/DATE-cpu.md          # all of it; some 20 minutes on 2 cores
    python bench/cpu.py --only small,decode --rounds 5

Ours and PyTorch's are called in turn in one process, outputs allocated by both. A ratio is PyTorch's time
divided by ours, the median of the rounds. A cell in **bold** falls short of its section's wanted ratio. For
those on one thread a second table follows: the share of the processor's peak that our kernel reaches now, and
the share that the wanted ratio would take. No kernel of these instructions reaches more than 100 %.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional

import orchard_jit
from orchard_jit.commands.calls import PASSES, Call
from orchard_jit.commands.machine import facts
from orchard_jit.commands.peak import measure
from orchard_jit.timing import Pair, compare

HEAD_DIMS = (32, 64, 80, 96, 128, 256)
LENGTHS = (128, 512, 1024, 2048, 4096)
SHORT = 512
THREADS = (1, 2)
GRID = Call("cpu", "float32", 1, 4, 4, 512, 64, False, "none", 1)


def wanted(call: Call, name: str) -> float:
    """The ratio that a cell of the grid should reach."""
    short = call.length <= SHORT
    if call.dtype == "float32" and name == "forward":
        return (1.8 if short else 1.35) if call.causal else (1.25 if call.head_dim <= 64 else 1.1)
    if call.dtype == "float32":
        return (1.7 if short else 1.3) if call.causal else 1.1
    if name == "forward":
        return 1.6 if call.causal else 1.25
    if call.dtype == "float16":
        return 25.0
    return 5.0 if call.causal else 4.0


def marked(pair: Pair, least: float) -> str:
    text = f"{pair.ratio:.2f}"
    return text if pair.ratio >= least else f"**{text}**"


def share(call: Call, name: str, pair: Pair) -> float:
    """Of the peak, measured now: the machine's clock is not constant."""
    return call.flops(name) / pair.fastest / measure("cpu", call.dtype, call.threads).flops


def needed(call: Call, name: str, pair: Pair, rounds: int) -> str:
    """The share of the peak that a pass reaches, and the one that its wanted ratio takes."""
    if pair.ratio >= wanted(call, name):
        return ""
    if call.length <= SHORT:  # so little time that the machine's moods show
        pair = call.against_pytorch(name, 4 * rounds)
    now = share(call, name, pair)
    return f"{now:.0%} → {now * wanted(call, name) / pair.ratio_of_minima:.0%}"


def grid(dtype: str, lengths: Sequence[int], rounds: int) -> Iterator[str]:
    header = [row("S", *(f"D{head_dim}" for head_dim in HEAD_DIMS)), row(*["---"] * (1 + len(HEAD_DIMS)))]
    for threads, causal in itertools.product(THREADS, (False, True)):
        shape = "causal" if causal else "full"
        title = f"{dtype}, {shape}, {threads} thread{'s' * (threads > 1)}"
        short = []
        yield f"\n{title}: forward / backward\n"
        yield from header
        for length in lengths:
            cells, shares = [], []
            for head_dim in HEAD_DIMS:
                call = replace(
                    GRID, dtype=dtype, length=length, head_dim=head_dim, causal=causal, threads=threads
                )
                pairs = {name: call.against_pytorch(name, rounds) for name in PASSES}
                cells.append(" / ".join(marked(pairs[name], wanted(call, name)) for name in PASSES))
                if threads == 1:
                    shares.append(
                        ", ".join(filter(None, (needed(call, *pair, rounds) for pair in pairs.items())))
                    )
            yield row(str(length), *cells)
            if any(shares):
                short.append(row(str(length), *shares))
        if short:
            yield f"\n{title}: share of the peak now → for the wanted ratio\n"
            yield from (*header, *short)


def peak(rounds: int) -> Iterator[str]:
    yield row("dtype", "S", "D", "forward", "backward")
    yield row(*["---"] * 5)
    for dtype in ("float32", "bfloat16"):
        for length, head_dim in itertools.product((512, 2048), (64, 128)):
            call = replace(GRID, dtype=dtype, length=length, head_dim=head_dim)
            shares = [f"{share(call, name, call.against_pytorch(name, 4 * rounds)):.0%}" for name in PASSES]
            yield row(dtype, str(length), str(head_dim), *shares)


def both_passes(attention: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> Callable[[], object]:
    """Forward and backward, to the gradients of all inputs that want one."""
    leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    wanting = [leaf for leaf in leaves if leaf.requires_grad]

    def run() -> object:
        out = attention(*leaves)
        return torch.autograd.grad(out, wanting, out.detach())

    return run


def inputs(
    dtype: str, heads: int, kv_heads: int, queries: int, keys: int, dim: int, batch: int = 1
) -> list[torch.Tensor]:
    shapes = ((batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim))
    return [torch.randn(shape).to(getattr(torch, dtype)) for shape in shapes]


sdpa = functional.scaled_dot_product_attention


def grouped(rounds: int) -> Iterator[str]:
    yield row("dtype", "S", "full", "causal")
    yield row(*["---"] * 4)
    for dtype, length in itertools.product(("float32", "bfloat16"), (512, 2048)):
        tensors = inputs(dtype, 32, 8, length, length, 128)
        cells = []
        for causal in (False, True):
            ours = partial(orchard_jit.flash_attention, causal=causal)
            pair = compare(
                both_passes(ours, *tensors),
                both_passes(partial(sdpa, is_causal=causal, enable_gqa=True), *tensors),
                rounds,
            )
            cells.append(marked(pair, 1.7 if causal else 1.2))
        yield row(dtype, str(length), *cells)


def decode(rounds: int) -> Iterator[str]:
    yield row("dtype", "threads", "4k", "8k", "16k", "32k")
    yield row(*["---"] * 6)
    for dtype, threads in itertools.product(("float32", "bfloat16", "float16"), THREADS):
        torch.set_num_threads(threads)
        cells = []
        for keys in (4096, 8192, 16384, 32768):
            q, k, v = inputs(dtype, 32, 8, 1, keys, 128)
            ours, theirs = orchard_jit.flash_attention, partial(sdpa, enable_gqa=True)
            pair = compare(lambda: ours(q, k, v), lambda: theirs(q, k, v), rounds)  # noqa: B023
            cells.append(marked(pair, 2.5 if dtype == "float32" else 5.0))
        yield row(dtype, str(threads), *cells)
    torch.set_num_threads(1)


def features(rounds: int) -> Iterator[str]:
    yield row("feature", "float32 forward", "float32 both", "bfloat16 forward", "bfloat16 both")
    yield row(*["---"] * 5)
    length, batch = 1024, 2
    ours, flash = orchard_jit.flash_attention, orchard_jit.flash_attention
    mask = torch.rand(batch, 1, length, length) > 0.3
    padding = (torch.arange(length) < torch.tensor([length // 2, length * 3 // 4])[:, None])[:, None, None, :]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    window = (distance >= 0) & (distance < 128)
    numbers = torch.randn(1, 4, length, length)
    cases: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], torch.Tensor | None]] = {
        "boolean mask": (partial(ours, mask=mask), partial(sdpa, attn_mask=mask), None),
        "padding mask": (partial(ours, mask=padding), partial(sdpa, attn_mask=padding), None),
        "window mask, as a mask": (partial(ours, mask=window), partial(sdpa, attn_mask=window), None),
        "window, as a window": (
            partial(ours, window=(127, 0)),
            partial(sdpa, attn_mask=window),
            None,
        ),
        "bias": (
            lambda q, k, v: flash(q, k, v, bias=numbers.to(q.dtype)),
            lambda q, k, v: sdpa(q, k, v, attn_mask=numbers.to(q.dtype)),
            None,
        ),
        "bias with gradient": (
            lambda q, k, v, b: flash(q, k, v, bias=b),
            lambda q, k, v, b: sdpa(q, k, v, attn_mask=b),
            numbers,
        ),
        "dropout": (partial(ours, dropout_p=0.1), partial(sdpa, dropout_p=0.1), None),
    }
    for name, (mine, theirs, bias) in cases.items():
        cells = []
        for dtype in ("float32", "bfloat16"):
            tensors = inputs(dtype, 4, 4, length, length, 64, batch)
            tensors += [] if bias is None else [bias.to(getattr(torch, dtype))]
            forward = compare(lambda: mine(*tensors), lambda: theirs(*tensors), rounds)  # noqa: B023
            both = compare(both_passes(mine, *tensors), both_passes(theirs, *tensors), rounds)
            cells += [marked(forward, 1.3), marked(both, 1.3)]
        yield row(name, *cells)


def small(rounds: int) -> Iterator[str]:
    yield row("dtype", *(f"S{length}" for length in (16, 32, 64, 128)))
    yield row(*["---"] * 5)
    for dtype in ("float32", "bfloat16", "float16"):
        cells = []
        for length in (16, 32, 64, 128):
            tensors = inputs(dtype, 1, 1, length, length, 64)
            forward = compare(
                lambda: orchard_jit.flash_attention(*tensors),  # noqa: B023
                lambda: sdpa(*tensors),  # noqa: B023
                2 * rounds + 1,
            )
            both = compare(
                both_passes(orchard_jit.flash_attention, *tensors),
                both_passes(sdpa, *tensors),
                2 * rounds + 1,
            )
            cells.append(f"{marked(forward, 1.0)} / {marked(both, 1.0)}")
        yield row(dtype, *cells)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


SECTIONS: dict[str, tuple[str, Callable[[int], Iterator[str]]]] = {
    "small": ("One batch, one head, D64: forward / forward and backward; wanted: 1.0", small),
    "grouped": (
        "32 query heads on 8 key heads, D128, both passes; wanted: 1.2, causal 1.7",
        grouped,
    ),
    "decode": ("One query, 32 query heads on 8 key heads, D128; wanted: 2.5 (float32), 5", decode),
    "features": ("B2 H4 S1024 D64, 1 thread; wanted: 1.3", features),
    "peak": ("Share of the measured peak in the fastest round, full attention, 1 thread; wanted: 85 %", peak),
    "float32": (
        "float32, B1 H4; wanted: forward 1.1 (D <= 64: 1.25), causal 1.35 (S <= 512: 1.8); "
        "backward 1.1, causal 1.3 (S <= 512: 1.7)",
        partial(grid, "float32", LENGTHS),
    ),
    "bfloat16": (
        "bfloat16, B1 H4; wanted: forward 1.25, causal 1.6; backward 4, causal 5",
        partial(grid, "bfloat16", LENGTHS),
    ),
    "float16": (
        "float16, B1 H4 (longer lengths take PyTorch's backward half a minute); wanted: forward 1.25, "
        "causal 1.6; backward 25",
        partial(grid, "float16", LENGTHS[:2]),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="SECTION[,…]")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    machine = facts()
    print("# The CPU kernels against PyTorch's attention\n")
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end=".\n\n")
    print(*__doc__.split("\n\n")[2:], sep="\n\n", end="")
    torch.set_num_threads(1)
    for name in options.only.split(","):
        title, section = SECTIONS[name]
        print(f"\n## {title}\n")
        for line in section(options.rounds):
            print(line, flush=True)
        torch.set_num_threads(1)


if __name__ == "__main__":
    main()
