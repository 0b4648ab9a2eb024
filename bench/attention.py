"""Forward and backward against PyTorch's own attention, over a grid of shapes.

    python bench/attention.py                      # a grid of a few minutes
    python bench/attention.py --head-dim 64 --length 512,2048 --dtype float32 --threads 1,2 --json out.json

A ratio is PyTorch's time divided by ours: above 1, ours is faster. Both are called in turn in one process;
"median" is that of the rounds' ratios, "best" compares the fastest round of each. Outputs are allocated.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from machine import describe
from pairs import Pair, compare

import orchard_jit


def measure(batch, heads, kv_heads, length, head_dim, dtype, causal, rounds) -> tuple[Pair, Pair]:
    q = torch.randn(batch, heads, length, head_dim, dtype=dtype)
    k, v = (torch.randn(batch, kv_heads, length, head_dim, dtype=dtype) for _ in range(2))
    grad_out = torch.randn_like(q)
    gqa = heads != kv_heads

    def ours(q, k, v):
        return orchard_jit.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    def theirs(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=gqa)

    forward = compare(lambda: ours(q, k, v), lambda: theirs(q, k, v), rounds)
    leaves = [x.requires_grad_() for x in (q, k, v)]
    graphs = [attention(*leaves) for attention in (ours, theirs)]
    backward = compare(
        *(
            lambda out=out: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)  # type: ignore[misc]
            for out in graphs
        ),
        rounds,
    )
    return forward, backward


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--head-dim", type=numbers, default=[32, 64, 128])
    parser.add_argument("--length", type=numbers, default=[128, 512, 2048])
    parser.add_argument("--dtype", default="float32,bfloat16,float16")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, help="as many as heads, by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=numbers, default=[torch.get_num_threads()])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()

    print(
        f"{'dtype':9} {'D':>4} {'S':>6} {'causal':6} {'thr':>3}"
        f" | {'forward ms':>10} {'median':>7} {'best':>6} | {'backward ms':>11} {'median':>7} {'best':>6}"
    )
    rows = []
    for threads, name, head_dim, length, causal in itertools.product(
        options.threads, options.dtype.split(","), options.head_dim, options.length, (False, True)
    ):
        torch.set_num_threads(threads)
        forward, backward = measure(
            options.batch,
            options.heads,
            options.kv_heads or options.heads,
            length,
            head_dim,
            getattr(torch, name),
            causal,
            options.rounds,
        )
        print(
            f"{name:9} {head_dim:4} {length:6} {'yes' if causal else 'no':6} {threads:3}"
            f" | {forward.ours * 1e3:10.3f} {forward.ratio:7.2f} {forward.ratio_of_minima:6.2f}"
            f" | {backward.ours * 1e3:11.3f} {backward.ratio:7.2f} {backward.ratio_of_minima:6.2f}",
            flush=True,
        )
        rows.append(
            {
                "dtype": name,
                "head_dim": head_dim,
                "length": length,
                "causal": causal,
                "threads": threads,
                "forward": vars(forward),
                "backward": vars(backward),
            }
        )
    if options.json:
        shape = {
            "batch": options.batch,
            "heads": options.heads,
            "kv_heads": options.kv_heads or options.heads,
        }
        options.json.write_text(
            json.dumps({"machine": describe(), "shape": shape, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
