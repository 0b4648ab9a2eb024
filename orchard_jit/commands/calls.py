"""One call of attention, ours and PyTorch's, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from orchard_jit.attention import flash_attention
from orchard_jit.timing import Pair, Work, compare

PASSES = ("forward", "backward")
MASKS = {
    "none": "nothing but causal",
    "bool": "a boolean mask of (length, length)",
    "bias": "an additive one in the inputs' dtype",
}

_FORWARD_PRODUCTS = 2
_BACKWARD_PRODUCTS = 5
_FLOPS_OF_A_PRODUCT = 2

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Call:
    """What attention is called with."""

    device: str
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    causal: bool
    mask: str
    threads: int

    def flops(self, name: str) -> float:
        """Operations of a pass: of the products alone, with the keys that `causal` leaves."""
        seen = self.length * (self.length + 1) / 2 if self.causal else self.length**2
        products = _FORWARD_PRODUCTS if name == "forward" else _BACKWARD_PRODUCTS
        return products * _FLOPS_OF_A_PRODUCT * self.batch * self.heads * seen * self.head_dim

    def against_pytorch(self, name: str, rounds: int, their_device: str | None = None) -> Pair:
        """Times of one pass, and PyTorch's, on the same device or on another one."""
        torch.set_num_threads(self.threads)
        ours = self._work(name, self.device, self._ours(self.device))
        theirs = self._work(name, their_device or self.device, self._pytorchs(their_device or self.device))
        return compare(ours, theirs, rounds, device=self.device)

    def _ours(self, device: str) -> Attention:
        mask = self._mask(device)
        return lambda query, key, value: flash_attention(
            query,
            key,
            value,
            causal="upper_left" if self.causal else False,
            mask=mask if self.mask == "bool" else None,
            bias=mask if self.mask == "bias" else None,
        )

    def _pytorchs(self, device: str) -> Attention:
        mask = self._mask(device)
        return lambda query, key, value: functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=self.causal, enable_gqa=self.heads != self.kv_heads
        )

    def _work(self, name: str, device: str, attention: Attention) -> Work:
        query, key, value, grad_out = self._tensors(device)
        if name == "forward":
            return lambda: attention(query, key, value)
        leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
        out = attention(query, key, value)
        return lambda: torch.autograd.grad(out, leaves, grad_out, retain_graph=True)

    def _tensors(self, device: str) -> Sequence[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randn(self.batch, heads, self.length, self.head_dim, generator=generator).to(
                device, getattr(torch, self.dtype)
            )
            for heads in (self.heads, self.kv_heads, self.kv_heads, self.heads)
        ]

    def _mask(self, device: str) -> torch.Tensor | None:
        if self.mask == "none":
            return None
        numbers = torch.randn(self.length, self.length, generator=torch.Generator().manual_seed(1))
        return (
            (numbers > 0).to(device)
            if self.mask == "bool"
            else numbers.to(device, getattr(torch, self.dtype))
        )
