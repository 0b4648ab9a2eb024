"""The one way from Python into the operators."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import torch

from orchard_jit import operators
from orchard_jit.blocks.forced import current
from orchard_jit.selection import select
from orchard_jit.variant import Variant

LN_2 = math.log(2.0)
"""What makes the operators' log-sum-exp, which is in base 2, a natural one."""


class Arguments(NamedTuple):
    """The forward operator's arguments, in its order; see `orchard_jit.operators.forward`."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float | None = None
    left: int | None = None
    right: int | None = None
    lower_right: bool = False
    mask: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    seed: torch.Tensor | None = None
    query_offsets: torch.Tensor | None = None
    key_offsets: torch.Tensor | None = None
    key_lengths: torch.Tensor | None = None
    dropout: float = 0.0
    longest_query: int = 0
    longest_key: int = 0
    arrays: tuple[torch.Tensor, ...] | None = None
    scalars: tuple[float, ...] = ()
    score: str = ""
    blocks: str = ""


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float | None = None,
    left: int | None = None,
    right: int | None = None,
    lower_right: bool = False,
) -> torch.Tensor:
    """The output of `forward` where a call has no other arguments than these: the shortest way there is."""
    if _is_watched() or current():
        return forward(Arguments(query, key, value, scale, left, right, lower_right))[0]
    out: torch.Tensor = operators.attention(query, key, value, scale, left, right, lower_right)
    return out


def output(arguments: Arguments) -> torch.Tensor:
    """The output of `forward`, on the shortest way that the call's arguments leave."""
    query, key, value, scale, left, right, lower_right = arguments[:7]
    if (
        arguments.mask is None
        and arguments.bias is None
        and arguments.sinks is None
        and arguments.query_offsets is None
        and arguments.key_lengths is None
        and not (arguments.dropout or arguments.score or arguments.blocks)
    ):
        return attention(query, key, value, scale, left, right, lower_right)
    return forward(arguments)[0]


def forward(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and base-2 log-sum-exp."""
    arguments = _specialized(arguments)
    if torch._C._are_functorch_transforms_active():
        from orchard_jit import transforms

        return transforms.forward(arguments)
    out, lse = operators.forward(*arguments)
    return out, lse


def autocast_dtype(device: str) -> torch.dtype | None:
    """What autocast makes of floating tensors on devices of this type; None where it leaves them."""
    if device not in operators.BACKEND_OF_DEVICE or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def under_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """As templates/binding/autocast.cpp casts it; for who has to know what the forward ran on."""
    dtype = autocast_dtype(tensor.device.type)
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor if dtype is None or not eligible else tensor.to(dtype)


def cast(arguments: Arguments) -> Arguments:
    """What the forward operator makes of its arguments under autocast."""
    query, key, value = map(under_autocast, arguments[:3])
    bias = None if arguments.bias is None else under_autocast(arguments.bias)
    return arguments._replace(query=query, key=key, value=value, bias=bias)


def variants(arguments: Arguments) -> dict[str, Variant]:
    """What forward and backward of the call run, by pass; nothing is computed or compiled."""
    return planned(plan(arguments))


def plan(arguments: Arguments) -> str:
    """What forward and backward of the call ask for, to be read by `planned`; a bad call is an error."""
    requests: str = operators.plan(*_specialized(cast(arguments)))
    return requests


def planned(requests: str) -> dict[str, Variant]:
    """The variants that a `plan` leads to, by pass."""
    passes = ("forward", "backward")
    return {name: select(**request) for name, request in zip(passes, json.loads(requests), strict=True)}


def _is_watched() -> bool:
    """Whether somebody traces or transforms the call, to whom `operators.attention` means nothing."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _specialized(arguments: Arguments) -> Arguments:
    """The call with what `specialize` forces in this thread, unless it says something itself."""
    blocks = current()
    return arguments._replace(blocks=blocks) if blocks and not arguments.blocks else arguments
