"""torch.func: grad, vjp, jacrev and vmap of attention, in any order.

PyTorch's autograd functions in C++ refuse to run below a transform, so here is the same one in Python. Below
vmap the samples of a call become further batches of one where that means the same, else one call each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from orchard_jit import operators
from orchard_jit.call import Arguments, cast

_COUNT = len(Arguments._fields)
_BIAS, _SINKS = Arguments._fields.index("bias"), Arguments._fields.index("sinks")
_BATCH = re.compile(r"\bb\b")  # as score functions call it
_FORWARD_MODE = (
    "orchard_jit: forward-mode differentiation (jvp, jacfwd) of attention is not supported; use grad, vjp or "
    "jacrev, or PyTorch's attention under torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
)

Dims = tuple[Any, ...]
"""Which dimension of each argument counts the samples; None where all share it."""
Samples = tuple[tuple[torch.Tensor, ...], tuple[int | None, ...]]
"""An operator's results, and which dimension of each counts the samples."""


def forward(arguments: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """`operators.forward` below transforms of torch.func."""
    if torch.compiler.is_compiling():
        # Dynamo traces no autograd function below vmap, and leaves differentiating to who compiles its graph.
        out, lse = operators.forward(*arguments)
        return out, lse
    arguments = cast(arguments)  # the operators would, too late: the backward needs what the forward ran on
    # Autograd finds tensors only outside of lists.
    out, lse = Attention.apply(*arguments._replace(arrays=None), *(arguments.arrays or ()))
    return out, lse


class Attention(torch.autograd.Function):
    """What templates/binding/autograd.cpp is without transforms."""

    generate_vmap_rule = True  # by those of the operators, below

    @staticmethod
    def forward(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = operators.forward(*_with_samples(_arguments(inputs)))
        return out, lse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        if any(ctx.needs_input_grad[_COUNT:]):
            raise NotImplementedError(
                "orchard_jit: a tensor of the score function requires a gradient, which kernels don't give; "
                "detach it, or pass what it adds as a bias"
            )
        ctx.values = [None if isinstance(value, torch.Tensor) else value for value in inputs]
        ctx.save_for_backward(*output, *(x if isinstance(x, torch.Tensor) else None for x in inputs))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad_out: torch.Tensor | None, grad_lse: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        out, lse, *tensors = ctx.saved_tensors
        inputs = [x if value is None else value for x, value in zip(tensors, ctx.values, strict=True)]
        of_bias, of_sinks = ctx.needs_input_grad[_BIAS], ctx.needs_input_grad[_SINKS]
        if not of_sinks:
            inputs[_SINKS] = None
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        *grads, grad_bias, grad_sinks = operators.backward(
            grad_out, grad_lse, *_arguments(inputs), out, lse, of_bias
        )
        of_inputs: list[torch.Tensor | None] = [None] * len(inputs)
        of_inputs[:3] = grads
        of_inputs[_BIAS] = grad_bias if of_bias else None
        of_inputs[_SINKS] = grad_sinks if of_sinks else None
        return tuple(of_inputs)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise NotImplementedError(_FORWARD_MODE)


def forward_of_samples(size: int, in_dims: Dims, *arguments: Any) -> Samples:
    """The forward operator's batching rule."""
    given, dims = Arguments(*arguments), Arguments(*in_dims)
    if not _folds(given, dims):
        return _one_by_one(operators.forward, size, in_dims, arguments)
    folded, batch = _folded_arguments(given, dims, size)
    out, lse = operators.forward(*folded)
    return (out.unflatten(0, (size, batch)), lse.unflatten(0, (size, batch))), (0, 0)


def backward_of_samples(size: int, in_dims: Dims, *arguments: Any) -> Samples:
    """The backward operator's batching rule."""
    grad_out, grad_lse, *inputs, out, lse, of_bias = arguments
    grad_out_dim, grad_lse_dim, *input_dims, out_dim, lse_dim, _ = in_dims
    given: Any = Arguments(*inputs)
    dims: Any = Arguments(*input_dims)
    # Each sample has a gradient of the sinks of its own, which no batch has.
    if not _folds(given, dims) or given.sinks is not None:
        return _one_by_one(operators.backward, size, in_dims, arguments)
    folded, batch = _folded_arguments(given, dims, size, of_bias)
    *grads, grad_bias, grad_sinks = operators.backward(
        _folded(grad_out, grad_out_dim, size),
        None if grad_lse is None else _folded(grad_lse, grad_lse_dim, size),
        *folded,
        _folded(out, out_dim, size),
        _folded(lse, lse_dim, size),
        of_bias,
    )
    if of_bias:
        grad_bias = grad_bias.unflatten(0, (size, batch))
        if _stacked(given.bias, dims.bias, size).shape[1] == 1:
            grad_bias = grad_bias.sum(1, keepdim=True)
    grads = [grad.unflatten(0, (size, batch)) for grad in grads]
    return (*grads, grad_bias, grad_sinks), (0, 0, 0, 0 if of_bias else None, None)


def _arguments(inputs: Sequence[Any]) -> Arguments:
    """From what autograd is shown."""
    return Arguments(*inputs[:_COUNT])._replace(arrays=tuple(inputs[_COUNT:]) or None)


def _with_samples(arguments: Arguments) -> Arguments:
    """PyTorch looks for samples outside of lists: those of a score function's tensors become the query's."""
    functorch = torch._C._functorch
    given = [x for x in arguments if isinstance(x, torch.Tensor)]
    sampled = [array for array in arguments.arrays or () if functorch.is_batchedtensor(array)]
    if not sampled or any(functorch.is_batchedtensor(tensor) for tensor in given):
        return arguments
    size = functorch.get_unwrapped(sampled[0]).shape[functorch.maybe_get_bdim(sampled[0])]
    level = functorch.maybe_get_level(sampled[0])
    query = arguments.query
    return arguments._replace(query=functorch._add_batch_dim(query.expand(size, *query.shape), 0, level))


def _folds(given: Arguments, dims: Any) -> bool:
    """Whether samples mean as much as batches: not to what knows its batch's number (random bits, some score
    functions), nor where there is one for all batches (packed sequences, sinks, a score function's tensors).
    """
    one_for_all = (dims.sinks, *(dims.arrays or ()))
    return not (
        given.dropout
        or given.query_offsets is not None
        or any(dim is not None for dim in one_for_all)
        or _BATCH.search(given.score)
    )


def _folded_arguments(given: Arguments, dims: Any, size: int, of_bias: bool = False) -> tuple[Arguments, int]:
    """(N, B, ...) as N * B batches; and B."""
    query = _stacked(given.query, dims.query, size)
    batch = query.shape[1]
    lengths = given.key_lengths
    return given._replace(
        query=_folded(given.query, dims.query, size),
        key=_folded(given.key, dims.key, size),
        value=_folded(given.value, dims.value, size),
        mask=_folded_plane(given.mask, dims.mask, size, batch, shared=True),
        bias=_folded_plane(given.bias, dims.bias, size, batch, shared=not of_bias),
        key_lengths=None if lengths is None else _folded(lengths, dims.key_lengths, size),
    ), batch


def _folded_plane(
    plane: torch.Tensor | None, dim: int | None, size: int, batch: int, *, shared: bool
) -> torch.Tensor | None:
    """A mask or bias, which may be one for all batches, and stays so if the samples may share it."""
    if plane is None or (shared and dim is None and plane.shape[0] == 1):
        return plane
    stacked = _stacked(plane, dim, size)
    if stacked.shape[1] == 1:
        stacked = stacked.expand(-1, batch, *stacked.shape[2:])
    return stacked.flatten(0, 1)


def _folded(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """(N, B, ...) as (N * B, ...)."""
    return _dense(_stacked(tensor, dim, size).flatten(0, 1))


def _stacked(tensor: torch.Tensor, dim: int | None, size: int) -> torch.Tensor:
    """(N, ...): the samples in front, all the same where they share the tensor."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """Dense in the last dimension, as kernels want it: vmap hides from its user how samples lie in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _one_by_one(operator: Callable[..., Any], size: int, in_dims: Dims, arguments: Dims) -> Samples:
    def sample(argument: Any, dim: Any, index: int) -> Any:
        if isinstance(argument, list | tuple) and isinstance(dim, list | tuple):
            return [sample(*pair, index) for pair in zip(argument, dim, strict=True)]
        return argument if dim is None else _dense(argument.select(dim, index))

    results = [
        operator(*(sample(*pair, index) for pair in zip(arguments, in_dims, strict=True)))
        for index in range(size)
    ]
    return tuple(torch.stack(of_all) for of_all in zip(*results, strict=True)), (0,) * len(results[0])
