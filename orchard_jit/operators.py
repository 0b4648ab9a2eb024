"""The operators as PyTorch knows them: schemas, shapes for tracing, and loading at the first call.

The schemas are here, so that they exist as soon as the package is imported; the kernels are in the
compiled binding (`templates/binding`), which registers itself for the CPU, MPS and Autograd keys when
it is loaded. Until then every call lands in `_load_and_repeat`, also one from a compiled graph that
was cached by another process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from orchard_jit import binding
from orchard_jit.selection import select
from orchard_jit.variant import Variant

BACKEND_OF_DEVICE = {"cpu": "cpu", "mps": "metal"}

_library = torch.library.Library("orchard_jit", "DEF")
_library.define(
    "forward(Tensor query, Tensor key, Tensor value, float? scale, str causal) -> (Tensor out, Tensor lse)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "backward(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, "
    "Tensor lse, float? scale, str causal) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

forward = torch.ops.orchard_jit.forward.default
"""(query, key, value, scale, causal) -> (out, lse)

Query (B, H, Sq, D), key (B, Hk, Sk, D), value (B, Hk, Sk, Dv), all of one floating dtype on one device.
`scale` None means 1 / sqrt(D). `causal` is "none", "upper_left" or "lower_right". `out` is (B, H, Sq, Dv);
`lse` (B, H, Sq) is the log-sum-exp of each row's scaled scores in base 2, float32 (float64 for float64).
"""

backward = torch.ops.orchard_jit.backward.default
"""Gradients of query, key and value from those of `out` and, if given, of `lse`."""


def _load_and_repeat(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, torch.Tensor) and argument.device.type not in (
                *BACKEND_OF_DEVICE,
                "meta",
            ):
                raise NotImplementedError(
                    f"orchard_jit: a tensor is on {argument.device}; there are kernels for cpu and mps"
                )
        binding.load(also=_first_variants(*arguments) if operator is forward else ())
        # While it traces, PyTorch resolves kernels in Python and remembers this one; C++ does not tell it.
        operator._dispatch_cache.clear()
        return operator(*arguments)

    return kernel


def _first_variants(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, causal: str
) -> list[Variant]:
    """What the process's first call will ask for, so that it compiles beside the operators.

    Only a forecast: a call that no variant can serve gets its error from the operator.
    """
    kernels = ["forward"]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        kernels.append("backward")
    try:
        return [
            select(
                backend=BACKEND_OF_DEVICE[query.device.type],
                kernel=kernel,
                dtype=str(query.dtype).removeprefix("torch."),
                head_dim=query.shape[-1],
                head_dim_v=value.shape[-1],
                features=() if causal == "none" else ("causal",),
            )
            for kernel in kernels
        ]
    except (KeyError, ValueError, IndexError):
        return []


for _operator in (forward, backward):
    _name = _operator.name().removeprefix("orchard_jit::")
    # The binding registers for other keys than these two, which it thereby hides without replacing them.
    _library.impl(_name, _load_and_repeat(_operator), "CompositeExplicitAutograd")
    _library.impl(_name, _load_and_repeat(_operator), "Autograd")


def _empty_like_rows(model: torch.Tensor, heads: int, length: int, head_dim: int) -> torch.Tensor:
    """As in templates/binding/device.cpp: heads inside of rows in memory if the model has them so."""
    batch = model.shape[0]
    if 0 < model.stride(1) < model.stride(2):
        return model.new_empty((batch, length, heads, head_dim)).transpose(1, 2)
    return model.new_empty((batch, heads, length, head_dim))


def _empty_like(model: torch.Tensor) -> torch.Tensor:
    return _empty_like_rows(model, model.shape[1], model.shape[2], model.shape[3])


@torch.library.register_fake("orchard_jit::forward", lib=_library)
def _fake_forward(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None, causal: str
) -> tuple[torch.Tensor, torch.Tensor]:
    for name, tensor in (("key", key), ("value", value)):
        if tensor.device != query.device:
            raise ValueError(
                f"orchard_jit: {name} is on {tensor.device} but query is on {query.device}; "
                "they must be on one device"
            )
    batch, heads, length, _ = query.shape
    lse_dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    out = _empty_like_rows(query, heads, length, value.shape[3])
    return out, query.new_empty((batch, heads, length), dtype=lse_dtype)


@torch.library.register_fake("orchard_jit::backward", lib=_library)
def _fake_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float | None,
    causal: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty_like(query), _empty_like(key), _empty_like(value)
