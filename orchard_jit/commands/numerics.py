"""Errors of outputs and gradients, against attention in float64 and against PyTorch's own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from orchard_jit.attention import flash_attention
from orchard_jit.operators import BACKEND_OF_DEVICE
from orchard_jit.selection import select
from orchard_jit.variant import Variant

HEAD_DIM = 64
GRADCHECK_HEAD_DIM = 8

# Rounding a result to its dtype costs about eps / sqrt(12) relative to the largest numbers of a binade;
# twice that leaves room for the rounding inside the sums.
LIMITS = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}
_GRADIENT_FACTOR = 2.0  # a gradient goes through two more products than the output


@dataclass(frozen=True)
class Case:
    """One call: a dtype, a mask, and (heads, key heads, query length, key length)."""

    dtype: torch.dtype
    causal: bool
    sizes: tuple[int, int, int, int]

    def inputs(self, device: str) -> list[torch.Tensor]:
        """Query, key, value and a gradient of the output, the same at each call."""
        heads, kv_heads, query_length, key_length = self.sizes
        generator = torch.Generator().manual_seed(0)
        shapes = (
            (heads, query_length),
            (kv_heads, key_length),
            (kv_heads, key_length),
            (heads, query_length),
        )
        return [
            torch.randn(2, *shape, HEAD_DIM, generator=generator).to(device, self.dtype) for shape in shapes
        ]


@dataclass(frozen=True)
class Error:
    """One measured error and what it must stay below. NaN counts as infinite.

    Attributes:
        dtype: Short name of the dtype.
        what: What was compared.
        error: Relative error, in Frobenius norms.
        limit: The most that is accepted.

    """

    dtype: str
    what: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the error is within its limit."""
        return self.error <= self.limit

    def __str__(self) -> str:
        if self.limit == 0:
            return "equal" if self.holds else f"off by {self.error:.1e}"
        return f"{self.error:.1e} {'≤' if self.holds else '>'} {self.limit:.1e}"


SIZES = ((4, 4, 128, 128), (6, 2, 97, 97), (6, 2, 33, 201))
FORWARD = [Case(*case) for case in itertools.product(LIMITS, (False, True), SIZES)]
BACKWARD = [case for case in FORWARD if case.causal or case.dtype == torch.float32]


def forward_errors(device: str) -> Iterator[Error]:
    """Outputs against the float64 reference and PyTorch's SDPA; a second run must give the same bits."""
    for case in FORWARD:
        query, key, value, _ = case.inputs(device)
        out, again = (_flash(query, key, value, case.causal) for _ in range(2))
        expected = reference(query.cpu().double(), key.cpu().double(), value.cpu().double(), case.causal)
        sdpa = functional.scaled_dot_product_attention(
            query, key, value, is_causal=case.causal, enable_gqa=True
        )
        limit = LIMITS[case.dtype]
        yield Error(_short(case), "float64", _distance(out, expected), limit)
        yield Error(_short(case), "SDPA", _distance(out, sdpa), 2 * limit)  # both of them round
        yield Error(_short(case), "repeated", _distance(again, out), 0.0)


def gradient_errors(device: str) -> Iterator[Error]:
    """Gradients of query, key and value against those of the float64 reference."""
    for case in BACKWARD:
        *leaves, grad_out = case.inputs(device)
        exact = [leaf.cpu().double().requires_grad_() for leaf in leaves]
        for leaf in leaves:
            leaf.requires_grad_()
        grads = torch.autograd.grad(_flash(leaves[0], leaves[1], leaves[2], case.causal), leaves, grad_out)
        wanted = torch.autograd.grad(
            reference(exact[0], exact[1], exact[2], case.causal), exact, grad_out.cpu().double()
        )
        for name, actual, expected in zip(("query", "key", "value"), grads, wanted, strict=True):
            yield Error(
                _short(case), name, _distance(actual, expected), _GRADIENT_FACTOR * LIMITS[case.dtype]
            )


def gradcheck() -> None:
    """`torch.autograd.gradcheck` of output and log-sum-exp, on the CPU.

    Raises:
        RuntimeError: A gradient is not the numerical one; the message shows both.

    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 2, 5, GRADCHECK_HEAD_DIM), (1, 1, 7, GRADCHECK_HEAD_DIM), (1, 1, 7, GRADCHECK_HEAD_DIM))
    leaves = [
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes
    ]

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return flash_attention(query, key, value, causal="upper_left", return_lse=True)

    torch.autograd.gradcheck(attend, leaves)


def variants(device: str) -> list[Variant]:
    """All kernels that the functions above run on a device."""
    wanted = {("forward", case.dtype, case.causal, HEAD_DIM) for case in FORWARD}
    wanted |= {("backward", case.dtype, case.causal, HEAD_DIM) for case in BACKWARD}
    if device == "cpu":
        wanted |= {(kernel, torch.float64, True, GRADCHECK_HEAD_DIM) for kernel in ("forward", "backward")}
    return [
        select(
            backend=BACKEND_OF_DEVICE[device],
            kernel=kernel,
            dtype=str(dtype).removeprefix("torch."),
            head_dim=head_dim,
            head_dim_v=head_dim,
            features=("causal",) if causal else (),
        )
        for kernel, dtype, causal, head_dim in sorted(wanted, key=str)
    ]


def reference(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention by its definition: softmax(Q K^T / sqrt(D)) V."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if causal:
        visible = torch.ones_like(scores, dtype=torch.bool).tril()
        scores = scores.masked_fill(~visible, -math.inf)
    return scores.softmax(-1) @ value


def _flash(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
    return flash_attention(query, key, value, causal="upper_left" if causal else False)


def _short(case: Case) -> str:
    return str(case.dtype).removeprefix("torch.")


def _distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    distance = float((actual - expected).norm() / expected.norm())
    return math.inf if math.isnan(distance) else distance
