"""What a call costs beyond its arithmetic: B1 H1 and short lengths, against PyTorch's own attention.

python bench/dispatch.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from orchard_jit import flash_attention
from orchard_jit.timing import compare


def main() -> None:
    print(f"{'S':>4} {'pass':16} {'ours us':>8} {'theirs us':>9} {'median':>7} {'best':>6}")
    for length in (16, 32, 64, 128):
        q, k, v, grad_out = (torch.randn(1, 1, length, 64) for _ in range(4))
        leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        forward = compare(
            lambda: flash_attention(q, k, v),  # noqa: B023
            lambda: F.scaled_dot_product_attention(q, k, v),  # noqa: B023
            rounds=21,
        )
        both = compare(
            lambda: flash_attention(*leaves).backward(grad_out),  # noqa: B023
            lambda: F.scaled_dot_product_attention(*leaves).backward(grad_out),  # noqa: B023
            rounds=21,
        )
        for name, pair in (("forward", forward), ("forward+backward", both)):
            print(
                f"{length:4} {name:16} {pair.ours * 1e6:8.2f} {pair.theirs * 1e6:9.2f}"
                f" {pair.ratio:7.2f} {pair.ratio_of_minima:6.2f}"
            )


if __name__ == "__main__":
    main()
