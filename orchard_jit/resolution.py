"""`flash_attention` in two steps, for whoever looks at what it runs before it does, or instead."""

from __future__ import annotations

import torch

from orchard_jit import call, nested, options
from orchard_jit.call import Arguments
from orchard_jit.dropout import draw_seed
from orchard_jit.options import Options


def resolve(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, given: Options) -> Arguments:
    """What it means by its arguments, but for a seed: to draw one would change what follows."""
    is_nested = query.is_nested or key.is_nested or value.is_nested
    seed = torch.zeros(1, dtype=torch.int64, device=query.device) if given.get("dropout_p") else None
    return (nested.resolve if is_nested else options.resolve)(query, key, value, seed=seed, **given)


def output(query: torch.Tensor, arguments: Arguments) -> torch.Tensor:
    """What it returns, for a query and what it was resolved to; a seed is drawn now."""
    if arguments.dropout:
        arguments = arguments._replace(seed=draw_seed(arguments.query.device))
    out = call.output(arguments)
    return nested.like(query, out[0]) if query.is_nested else options.like(query, out)
