"""The calls that processes make together, and that one process makes alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

CHUNK = 6
"""Tokens of a chunk, of which each process holds two."""


@dataclass(frozen=True)
class Case:
    method: str | None
    causal: bool
    dtype: torch.dtype = torch.float32
    heads: tuple[int, int] = (4, 2)
    dims: tuple[int, int] = (16, 16)
    options: dict = field(default_factory=dict)

    def inputs(self, size):
        """Query, key, value and the gradients of output and log-sum-exp, whole; the same in every process."""
        generator = torch.Generator().manual_seed(7)
        (heads, key_heads), (dim, value_dim), length = self.heads, self.dims, 2 * CHUNK * size
        shapes = [(heads, length, dim), (key_heads, length, dim), (key_heads, length, value_dim)]
        shapes += [(heads, length, value_dim), (heads, length)]
        *tensors, grad_lse = (torch.randn(2, *shape, generator=generator).to(self.dtype) for shape in shapes)
        return *tensors, grad_lse.to(torch.float64 if self.dtype == torch.float64 else torch.float32)


CASES = {
    f"{method}{' causal' * causal}, {name}": Case(method, causal, **settings)
    for name, settings in {
        "float32": {},
        "bfloat16": {"dtype": torch.bfloat16},
        "float64 with another value dim": {"dtype": torch.float64, "dims": (3, 5)},
        "float32 with softcap": {"dims": (24, 24), "options": {"softcap": 5.0, "scale": 0.5}},
    }.items()
    for method in ("ring", "gather")
    for causal in (False, True)
}
CASES["by default, bfloat16"] = Case(None, False, torch.bfloat16)
BFLOAT16 = [name for name in CASES if name.endswith("bfloat16")]
