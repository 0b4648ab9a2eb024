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

_ARGUMENTS = (
    ("Tensor", "query"),
    ("Tensor", "key"),
    ("Tensor", "value"),
    ("float?", "scale=None"),
    ("int?", "left=None"),
    ("int?", "right=None"),
    ("bool", "lower_right=False"),
    ("Tensor?", "mask=None"),
    ("Tensor?", "bias=None"),
    ("Tensor?", "sinks=None"),
    ("Tensor?", "seed=None"),
    ("Tensor?", "query_offsets=None"),
    ("Tensor?", "key_offsets=None"),
    ("Tensor?", "key_lengths=None"),
    ("float", "dropout=0.0"),
    ("SymInt", "longest_query=0"),
    ("SymInt", "longest_key=0"),
    ("Tensor[]?", "arrays=None"),
    ("float[]", "scalars=[]"),
    ("str", 'score=""'),
    ("str", 'blocks=""'),
)
"""The forward operator's arguments."""

PLAIN = 7
"""So many of them are what the attention operator has: each argument costs time on its way to C++."""

_GIVEN, _GIVEN_PLAIN = (
    ", ".join(f"{kind} {name}" for kind, name in arguments) for arguments in (_ARGUMENTS, _ARGUMENTS[:PLAIN])
)
_REQUIRED = ", ".join(f"{kind} {name.partition('=')[0]}" for kind, name in _ARGUMENTS)
_SCHEMAS = (
    f"attention({_GIVEN_PLAIN}) -> Tensor",
    f"forward({_GIVEN}) -> (Tensor out, Tensor lse)",
    f"backward(Tensor grad_out, Tensor? grad_lse, {_REQUIRED}, Tensor out, Tensor lse, bool of_bias) -> "
    "(Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias, Tensor grad_sinks)",
    f"plan({_GIVEN}) -> str",
    "refuse(str reason) -> ()",
)

_library = torch.library.Library("orchard_jit", "DEF")
for _schema in _SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

forward = torch.ops.orchard_jit.forward.default
"""Attention and the log-sum-exp of its scores.

Args:
    query: (B, H, Sq, D), as key and value of one floating dtype, on one device.
    key: (B, Hk, Sk, D).
    value: (B, Hk, Sk, Dv).
    scale: None means 1 / sqrt(D).
    left, right: Query i sees keys i + d - left to i + d + right. None: unbounded.
    lower_right: Whether d is the number of keys less that of queries, of each sequence, or 0.
    mask: bool, broadcasts to (B, H, Sq, Sk); True where a query sees a key.
    bias: in the inputs' dtype or float32, broadcasts to (B, H, Sq, Sk); added to the scaled scores.
    sinks: (H), in lse's dtype; a logit of each head that takes weight and gives no value.
    seed: int64 (1); the key of the random bits, if `dropout` is not 0.
    query_offsets: int32 (N + 1); where each of N packed sequences begins in query. B is 1 then.
    key_offsets: int32 (N + 1); the same for key and value.
    key_lengths: int32 (B); how many keys there are of each batch.
    dropout: The probability that a weight is dropped.
    longest_query, longest_key: Of packed sequences.
    arrays, scalars, score: A score function's tensors, numbers and `ScoreMod.spec`; empty for none.
    blocks: Block sizes that are forced on the kernels, as `orchard_jit.blocks` writes them down.

Returns:
    out (B, H, Sq, Dv), and lse (B, H, Sq): the log-sum-exp of each row's scores in base 2, float32 (float64
    for float64).

"""

attention = torch.ops.orchard_jit.attention.default
"""The output alone of a forward that has none of the rarer arguments; a small call feels the difference."""

backward = torch.ops.orchard_jit.backward.default
"""Gradients of query, key, value, bias (if `of_bias`) and sinks from those of `out` and, if given, of `lse`.

Those of a bias or sinks that are not there are tensors without elements.
"""

plan = torch.ops.orchard_jit.plan.default
"""The variants that a call's forward and backward ask for, as a JSON list; nothing is computed."""


def _attention_by_forward(*arguments: Any) -> torch.Tensor:
    """For all whom the binding does not serve: tensors without data, and any before it is loaded."""
    out: torch.Tensor = forward(*arguments)[0]
    return out


def _load_and_repeat(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    served = (*BACKEND_OF_DEVICE, *(() if operator is plan else ("meta",)))

    def kernel(*arguments: Any) -> Any:
        for argument in arguments:
            if not isinstance(argument, torch.Tensor):
                continue
            if argument.device.type not in served:
                raise NotImplementedError(
                    f"orchard_jit: a tensor is on {argument.device}; there are kernels for cpu and mps"
                )
            if argument.layout is not torch.strided:
                raise NotImplementedError(
                    f"orchard_jit: a tensor has layout {argument.layout}; kernels read torch.strided"
                )
        binding.load(also=_first_variants(*arguments) if operator is forward else ())
        # While it traces, PyTorch resolves kernels in Python and remembers this one; C++ does not tell it.
        operator._dispatch_cache.clear()
        return operator(*arguments)

    return kernel


def _first_variants(*arguments: Any) -> list[Variant]:
    """What the process's first call will ask for, so that it compiles beside the operators.

    Only a forecast: a call that no variant can serve gets its error from the operator.
    """
    given: dict[str, Any] = dict(
        zip((name.partition("=")[0] for _, name in _ARGUMENTS), arguments, strict=False)
    )
    query, value = arguments[0], arguments[2]
    bias: Any = given.get("bias")
    sinks, right, left = given.get("sinks"), given.get("right"), given.get("left")
    has_bias = bias is not None
    features = {
        "window": left is not None,
        "causal": left is None and right is not None,
        "mask": given.get("mask") is not None,
        "bias": has_bias and bias.dtype == query.dtype,
        "bias_f32": has_bias and bias.dtype != query.dtype,
        "dropout": given.get("dropout", 0.0) > 0,
        "varlen": given.get("query_offsets") is not None,
        "lengths": given.get("key_lengths") is not None,
    }
    kernels = {"forward": {**features, "sinks": sinks is not None}}
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (*arguments[:3], bias, sinks)
    ):
        kernels["backward"] = {**features, "bias_grad": has_bias and bias.requires_grad}
    try:
        if query.shape[-2] <= 16 and arguments[1].shape[-2] >= 512:
            return []  # perhaps a decode, which only the operator knows
        return [
            select(
                backend=BACKEND_OF_DEVICE[query.device.type],
                kernel=kernel,
                dtype=str(query.dtype).removeprefix("torch."),
                head_dim=query.shape[-1],
                head_dim_v=value.shape[-1],
                features=[name for name, used in features.items() if used],
                score=given.get("score", ""),
                blocks=given.get("blocks", ""),
            )
            for kernel, features in kernels.items()
        ]
    except (KeyError, ValueError, IndexError):
        return []


def _batching_rule(name: str) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        from orchard_jit import transforms

        return getattr(transforms, f"{name}_of_samples")(info.batch_size, in_dims, *arguments)

    return rule


_library.impl("attention", _attention_by_forward, "CompositeImplicitAutograd")
_library.impl("refuse", binding.refuse, "CompositeExplicitAutograd")
for _operator in (forward, backward, plan):
    _name = _operator.name().removeprefix("orchard_jit::")
    # The binding registers for other keys than these two, which it thereby hides without replacing them.
    _library.impl(_name, _load_and_repeat(_operator), "CompositeExplicitAutograd")
    if _operator is not plan:
        _library.impl(_name, _load_and_repeat(_operator), "Autograd")
        torch.library.register_vmap(_operator.name(), _batching_rule(_name), lib=_library)


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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *others: Any
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
    grad_out: torch.Tensor, grad_lse: torch.Tensor | None, *others: Any
) -> tuple[torch.Tensor, ...]:
    query, key, value = others[:3]
    bias, sinks, of_bias = others[8], others[9], others[-1]
    grad_bias = bias.new_empty(bias.shape) if of_bias else query.new_empty(0)
    grad_sinks = query.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return _empty_like(query), _empty_like(key), _empty_like(value), grad_bias, grad_sinks
