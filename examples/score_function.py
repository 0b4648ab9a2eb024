"""Write a score function of your own: what becomes of each score before the softmax, and which keys are seen.

    python examples/score_function.py
    python examples/score_function.py --device mps --length 4096

Several documents lie one after the other in a sequence. A place sees those before it in its own document,
less and less with their distance (Chi et al. 2022, arXiv:2205.09921), and scores are capped as in Gemma 2.
The output is compared with that of PyTorch's `flex_attention`, the gradients with those of plain PyTorch in
float64, and the time with that of causal attention.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import orchard_jit
from orchard_jit import ScoreMod

CAP, RATE = 20.0, 0.5
Inputs = Sequence[torch.Tensor]
"""Query, key and value, (batch, heads, length, head_dim)."""


def capped_and_fading(strength: torch.Tensor, document: torch.Tensor) -> ScoreMod:
    """Two functions, one after the other. Blocks of keys that the mask hides are skipped."""
    capped = ScoreMod("cap * tanh(score / cap)", cap=CAP)
    fading = ScoreMod(
        "score - strength[h] * log(1 + rate * abs(q - kv))",
        mask="kv <= q and document[b, q] == document[b, kv]",
        strength=strength,
        rate=RATE,
        document=document,
    )
    return capped.then(fading)


def with_flex_attention(inputs: Inputs, strength: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
    """The same in PyTorch's words."""

    def score(
        score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor
    ) -> torch.Tensor:
        return CAP * torch.tanh(score / CAP) - strength[h] * torch.log(1 + RATE * torch.abs(q - kv))

    def mask(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        return (kv <= q) & (document[b, q] == document[b, kv])

    batch, _, length, _ = inputs[0].shape
    blocks = create_block_mask(mask, batch, None, length, length, device="cpu")
    warnings.filterwarnings("ignore", message="flex_attention called without")  # plain is what we want here
    return flex_attention(*inputs, score_mod=score, block_mask=blocks)


def with_a_matrix(inputs: Inputs, strength: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
    """The same with all scores in one tensor, which autograd knows how to differentiate."""
    query, key, value = inputs
    places = torch.arange(query.shape[2])
    distance = places[:, None] - places
    score = query @ key.mT / query.shape[3] ** 0.5
    score = CAP * torch.tanh(score / CAP) - strength[:, None, None] * torch.log(1 + RATE * distance.abs())
    seen = (distance >= 0) & (document[:, None, :, None] == document[:, None, None, :])
    return score.masked_fill(~seen, -torch.inf).softmax(-1) @ value


def gradients(out: torch.Tensor, inputs: Inputs) -> Inputs:
    """Those of the sum of squares."""
    return torch.autograd.grad(out.square().sum(), inputs)


def milliseconds(function: Callable[[], object], device: str, rounds: int = 5) -> float:
    """The best of some rounds."""
    times = []
    for _ in range(rounds + 1):  # the first one may compile
        started = time.perf_counter()
        function()
        if device == "mps":
            torch.mps.synchronize()
        times.append(time.perf_counter() - started)
    return 1e3 * min(times[1:])


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "mps"), default="cpu")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--documents", type=int, default=8)
    options = parser.parse_args()

    torch.manual_seed(0)
    shape = (1, 4, options.length, 64)
    host = [torch.randn(shape) for _ in range(3)]
    ends = torch.randint(options.length, (1, options.documents - 1)).sort().values
    document = torch.searchsorted(ends, torch.arange(options.length)[None], right=True, out_int32=True)
    strength = torch.tensor([0.1, 0.3, 1.0, 3.0])
    inputs = [tensor.to(options.device, copy=True).requires_grad_() for tensor in host]
    score_mod = capped_and_fading(strength.to(options.device), document.to(options.device))

    print("The kernels of this call:\n")
    print(orchard_jit.explain(*inputs, score_mod=score_mod))

    out = orchard_jit.flash_attention(*inputs, score_mod=score_mod)
    apart = (out.cpu() - with_flex_attention(host, strength, document)).abs().max().item()
    print(f"\nout       {apart:.1e} from flex_attention's")

    exact = [tensor.double().requires_grad_() for tensor in host]
    expected = gradients(with_a_matrix(exact, strength, document), exact)
    for name, mine, theirs in zip(("query", "key", "value"), gradients(out, inputs), expected, strict=True):
        apart = ((mine.cpu() - theirs).norm() / theirs.norm()).item()
        print(f"gradient  {apart:.1e} of {name}'s from that in float64")

    def forward_and_backward(**kind: Any) -> float:
        return milliseconds(
            lambda: gradients(orchard_jit.flash_attention(*inputs, **kind), inputs), options.device
        )

    print(f"\nforward and backward  {forward_and_backward(score_mod=score_mod):.1f} ms", end="")
    print(f", {forward_and_backward(causal=True):.1f} ms for causal attention")

    print("\nA mistake is told before anything is compiled:\n")
    try:
        ScoreMod("score - strenght[h] * abs(q - kv)", strength=strength)
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main()
