"""One sequence in several processes: the time of a step and the bytes that each process sends, by method.

    python bench/context_parallel.py [--length 8192] [--processes 2,4] [--dtype bfloat16]

The processes have one thread each and share this machine's cores, and messages take time of them too: there
is no network whose delay could be hidden. A process alone, with one thread, does the work of all.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch import distributed as dist
from torch import multiprocessing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from orchard_jit.commands.machine import facts
from orchard_jit.distributed import flash_attention, shard
from tests.distributed.journal import Journal

HEADS, KEY_HEADS, DIM, ROUNDS = 8, (8, 2), 64, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--dtype", default="bfloat16")
    given = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in facts().items() if name != "threads"))
    print(f"length {given.length}, {HEADS} heads, head dim {DIM}, {given.dtype}; median of {ROUNDS} rounds\n")
    print(
        "| processes | key heads | causal | method | forward ms | backward ms | MB sent: forward | backward |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for size in (1, *map(int, given.processes.split(","))):
        with tempfile.TemporaryDirectory() as folder:
            multiprocessing.spawn(job, (size, f"{folder}/store", given.length, given.dtype), nprocs=size)


def job(rank: int, size: int, store: str, length: int, dtype: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for key_heads, causal in itertools.product(KEY_HEADS, (False, True)):
        tensors = [
            shard(torch.randn(1, heads, length, DIM, dtype=getattr(torch, dtype)), 2)
            for heads in (HEADS, key_heads, key_heads, HEADS)
        ]
        for method in ("ring", "gather") if size > 1 else ("alone",):
            times, sent = measure(*tensors, causal=causal, method=method)
            if rank == 0:
                cells = [
                    *(f"{1e3 * seconds:.0f}" for seconds in times),
                    *(f"{x / size / 1e6:.1f}" for x in sent),
                ]
                print(f"| {size} | {key_heads} | {causal} | {method} | {' | '.join(cells)} |", flush=True)
    dist.destroy_process_group()


def measure(query, key, value, grad_out, **options) -> tuple[list[float], list[int]]:
    """Seconds of forward and backward, and the bytes that all processes together send."""
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    journals, seconds = (Journal(), Journal()), []
    for _ in range(ROUNDS + 1):  # the first one compiles
        dist.barrier()
        start = time.perf_counter()
        with journals[0].kept():
            out = flash_attention(*leaves, **options)
        dist.barrier()
        middle = time.perf_counter()
        with journals[1].kept():
            out.backward(grad_out)
        dist.barrier()
        seconds.append((middle - start, time.perf_counter() - middle))
    sent = torch.tensor([sum(journal.sent.values()) for journal in journals]) // (ROUNDS + 1)
    dist.all_reduce(sent)
    return [median(times) for times in zip(*seconds[1:], strict=True)], sent.tolist()


if __name__ == "__main__":
    main()
