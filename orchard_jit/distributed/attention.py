"""`flash_attention` of a sequence that is spread over processes."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any, Literal, overload

import torch
from torch import distributed as dist

from orchard_jit import attention, call, dynamo
from orchard_jit.blocks.forced import current
from orchard_jit.distributed import gather, ring
from orchard_jit.distributed.agreement import require_same
from orchard_jit.distributed.block import Problem, Rows, unpack
from orchard_jit.distributed.place import Place
from orchard_jit.jit import library, recipe
from orchard_jit.options import Options

Method = Literal["ring", "gather"]

_METHODS: dict[str, ModuleType] = {"ring": ring, "gather": gather}


@overload
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    group: dist.ProcessGroup | None = ...,
    causal: bool = ...,
    softcap: float | None = ...,
    scale: float | None = ...,
    method: Method | None = ...,
    return_lse: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    group: dist.ProcessGroup | None = ...,
    causal: bool = ...,
    softcap: float | None = ...,
    scale: float | None = ...,
    method: Method | None = ...,
    return_lse: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...
@dynamo.left_out("orchard_jit: its messages are posted as it runs")
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    causal: bool = False,
    softcap: float | None = None,
    scale: float | None = None,
    method: Method | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Exact attention of this process's queries to the keys of all processes, with gradients.

    Every process of the group calls it, and runs its backward, with its own part of one sequence, equal in
    shape to the others' parts; `shard` cuts them. Before anything is computed the processes compare what they
    are about to do, so that a mistake of one is an error of all. A process that fails later, in a kernel or
    in the backward, has to end: those that wait for it then get an error from torch.distributed.

    Args:
        query: (B, H, Sq, D), of this process, in the dtypes of `orchard_jit.flash_attention`.
        key: (B, Hk, Sk, D). H must be a multiple of Hk.
        value: (B, Hk, Sk, Dv).
        group: The processes that share the sequence; None is all of them. Its backend must take tensors of
            the CPU, as gloo does; those of MPS are copied there. A group of one is plain attention.
        causal: A query attends to keys that stand no later in the whole sequence. The parts are in zigzag
            order, as `shard` makes them; without a causal mask any order will do.
        softcap: cap * tanh(score / cap).
        scale: Factor of the scores, 1 / sqrt(D) by default.
        method: "ring": keys and values go round and are used as they come, while the next ones are on their
            way; memory for two parts. "gather": every process first gets them all; fewer messages, and
            nothing to merge. By default "gather" where the whole sequence's keys and values are no larger
            than this process's query and output, as with as many query heads to a key head as there are
            processes: then they cost little memory, and little time to wait for. Else "ring".
        return_lse: Also return the log-sum-exp of each row's scores, which is differentiable too.

    Returns:
        (B, H, Sq, Dv) in the inputs' dtype, and with `return_lse` the natural log-sum-exp (B, H, Sq) in
        float32 (float64 for float64).

    Raises:
        ValueError, TypeError, NotImplementedError, OrchardError: As in `orchard_jit.flash_attention`, in this
            process.
        ValueError: The processes call differently.
        RuntimeError: Another process can't make its call; or the gradient is differentiated again.

    """
    place = Place.of(group)
    if place.size == 1:
        options: Options = {"causal": causal, "softcap": softcap, "scale": scale}
        if return_lse:
            return attention.flash_attention(query, key, value, return_lse=True, **options)
        return attention.flash_attention(query, key, value, **options)
    # Here, and not by the operators: the backward needs what the forward ran on.
    query, key, value = map(call.under_autocast, (query, key, value))
    problem = Problem(causal, softcap, scale, current())
    statement, error = "", None
    try:
        _require_parts(query, key, value, causal=causal)
        method = _method(method, query, key, value, place.size)
        training = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
        _prepare(problem, method, training, query, key, value)
        statement = _describe(problem, method, training, query, key, value)
    except Exception as mistake:
        error = mistake
    require_same(statement, error, place)
    out, lse = _Attention.apply(query, key, value, method, problem, place)
    return (out, lse * call.LN_2) if return_lse else out


class _Attention(torch.autograd.Function):
    """Output and base-2 log-sum-exp."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        method: Method,
        problem: Problem,
        place: Place,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = _METHODS[method].forward(problem, place, query, key, value)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.how = (method, problem, place)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor | None, grad_lse: torch.Tensor | None) -> tuple[Any, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        method, problem, place = ctx.how
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        with torch.no_grad():
            rows = Rows(query, out, lse, grad_out, grad_lse)
            grad_query, grad_block = _METHODS[method].backward(problem, place, rows, key, value)
            grad_key, grad_value = unpack(grad_block, key.shape[-1])
            gradients = (grad_query.to(query), grad_key.to(key), grad_value.to(value))
        return *_Final.apply(*gradients, grad_out, query, key, value), None, None, None


class _Final(torch.autograd.Function):
    """Gradients, as they are. To differentiate them is an error; without this, some would be missing."""

    @staticmethod
    def forward(ctx: Any, *gradients_and_inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(gradient.view_as(gradient) for gradient in gradients_and_inputs[:3])

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> Any:
        raise RuntimeError(
            "orchard_jit: the backward of attention can't be differentiated again (double backward)"
        )


def _require_parts(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool) -> None:
    """What a part of a sequence has to be; the operators check everything else."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            kind = type(tensor).__name__
            raise TypeError(f"{name} is a {kind}; pass this process's part as a plain tensor")
        if tensor.dim() != 4:
            raise ValueError(f"{name} must be (batch, heads, length, head_dim), got {tuple(tensor.shape)}")
    if key.numel() == 0:
        raise ValueError(f"key is empty, of shape {tuple(key.shape)}; every process must hold some keys")
    if causal and (query.shape[2] != key.shape[2] or key.shape[2] % 2):
        raise ValueError(
            "causal attention takes as many queries as keys, in two equal chunks as from "
            f"orchard_jit.distributed.shard, got {query.shape[2]} queries and {key.shape[2]} keys"
        )


def _method(
    given: Method | None, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int
) -> Method:
    """The method that is asked for, or the better one."""
    if given is not None:
        if given not in _METHODS:
            raise ValueError(f"method must be None, 'ring' or 'gather', got {given!r}")
        return given
    gathered = size * (key.numel() + value.numel())
    own = query[..., 0].numel() * (query.shape[-1] + value.shape[-1])
    return "gather" if gathered <= own else "ring"


def _prepare(
    problem: Problem,
    method: Method,
    training: bool,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> None:
    """Check the rest, and compile every kernel, while no other process waits for a message."""
    diagonals = (True, False) if problem.causal and method == "ring" else (problem.causal,)
    plans = [call.plan(problem.arguments(query, key, value, diagonal=diagonal)) for diagonal in diagonals]
    _load(tuple(plans), training)


@functools.cache
def _load(plans: tuple[str, ...], training: bool) -> None:
    """Load the kernels of some calls, compiled if they have to be."""
    passes = ("forward", "backward") if training else ("forward",)
    variants = [call.planned(plan)[name] for plan in plans for name in passes]
    library.load_all([recipe.for_variant(variant) for variant in variants])


def _describe(
    problem: Problem,
    method: Method,
    training: bool,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> str:
    """All that has to be the same in all processes."""
    tensors = (("query", query), ("key", key), ("value", value))
    return ", ".join(
        [
            *(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors),
            str(query.dtype).removeprefix("torch."),
            f"causal={problem.causal}, softcap={problem.softcap}, scale={problem.scale}, method={method!r}",
            "with gradients" if training else "without gradients",
        ]
    )
