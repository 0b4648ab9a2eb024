"""PyTorch's `scaled_dot_product_attention`, called by code that knows nothing of us, brought here.

The function is replaced in `torch.nn.functional` as long as somebody wants it: the process, or regions of
threads. A `TorchFunctionMode` would need no patch, but it is off inside of functions that have asked it:
`multi_head_attention_forward`, and `backward` with what activation checkpointing computes again there.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from orchard_jit import functional, resolution
from orchard_jit.attention import flash_attention
from orchard_jit.errors import MissingVariantError
from orchard_jit.integrations import regions, traced
from orchard_jit.integrations.regions import Attention
from orchard_jit.integrations.report import LEDGER

PYTORCHS: Attention = torch._C._nn.scaled_dot_product_attention
"""The function that `torch.nn.functional.scaled_dot_product_attention` is, unless somebody replaced it."""

_NAME = "scaled_dot_product_attention"
_REFUSALS = (ValueError, TypeError, NotImplementedError, MissingVariantError)

_library = torch.library.Library("orchard_jit", "FRAGMENT")
_library.define(
    f"{_NAME}(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, "
    "bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@contextmanager
def sdpa(*, strict: bool = False) -> Iterator[None]:
    """Within `with orchard_jit.sdpa():`, attention of this thread runs here instead of in PyTorch.

    That is every call of `torch.nn.functional.scaled_dot_product_attention`, also from PyTorch's modules and
    from modules that have imported it by name, in PyTorch's semantics. A call that no kernel can take runs in
    PyTorch as before; `report` says how many, and why. `torch.nn.attention.sdpa_kernel` without
    FLASH_ATTENTION keeps calls in PyTorch too. Of regions inside of each other the innermost counts. What
    activation checkpointing computes again is in the region if the backward pass is.

    As long as there is a region, `nn.MultiheadAttention` and `nn.TransformerEncoder` do without their fused
    inference, which has an attention of its own (`torch.backends.mha`), in all threads.

    Args:
        strict: A call that no kernel can take is an error that says why. A compiled function is as strict
            as where it was traced.

    """
    with region(functools.partial(route, strict=strict)):
        yield


@contextmanager
def region(attention: Attention) -> Iterator[None]:
    """Let another attention than PyTorch's run where this thread calls PyTorch's; in all else as `sdpa`."""
    outer = regions.current()
    _replacement.acquire()
    regions.enter((*outer, attention))
    try:
        yield
    finally:
        regions.enter(outer)
        _replacement.release()


def replace_sdpa(*, strict: bool = False) -> None:
    """Let attention of the whole process run here instead of in PyTorch, until `restore_sdpa`.

    As `sdpa`, in all threads. Replacing again only changes `strict`.

    Args:
        strict: A call that no kernel can take is an error that says why.

    """
    global _process
    with _switching:
        if _process is None:
            _replacement.acquire()
        _process = functools.partial(route, strict=strict)


def restore_sdpa() -> None:
    """Undo `replace_sdpa`."""
    global _process
    with _switching:
        if _process is not None:
            _replacement.release()
        _process = None


_switching = threading.Lock()
_process: Attention | None = None
"""What `replace_sdpa` has put in the place of PyTorch's."""


class _Replacement:
    """Our function in PyTorch's place, as long as anybody holds it there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._theirs: object = PYTORCHS
        self._fast_path = True

    def acquire(self) -> None:
        with self._lock:
            if not self._holders:
                self._theirs = torch.nn.functional.scaled_dot_product_attention
                self._fast_path = torch.backends.mha.get_fastpath_enabled()
                _rebind(self._theirs, _routed)
                torch.backends.mha.set_fastpath_enabled(False)
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if not self._holders:
                _rebind(_routed, self._theirs)
                torch.backends.mha.set_fastpath_enabled(self._fast_path)


_replacement = _Replacement()


def _rebind(old: object, new: object) -> None:
    """In every module that holds the function by its name. PyTorch's other modules keep it: it is theirs."""
    for name, module in list(sys.modules.items()):
        pytorchs = name.startswith("torch.") and name != "torch.nn.functional"
        if not pytorchs and isinstance(module, ModuleType) and vars(module).get(_NAME) is old:
            setattr(module, _NAME, new)


@functools.wraps(PYTORCHS)
def _routed(*args: Any, **kwargs: Any) -> torch.Tensor:
    if torch.compiler.is_dynamo_compiling():
        # One node of the graph, which is taken apart where there are tensors to look at.
        out: torch.Tensor = torch.ops.orchard_jit.scaled_dot_product_attention(*args, **kwargs)
        return out
    return _route_or_not(*args, **kwargs)


def _route_or_not(*args: Any, **kwargs: Any) -> torch.Tensor:
    inside = regions.current()
    attention = inside[-1] if inside else _process or PYTORCHS
    return attention(*args, **kwargs)


_library.impl(_NAME, _route_or_not, "CompositeImplicitAutograd")


def route(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    strict: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` here if a kernel can take the call, in PyTorch if not."""
    arguments = (query, key, value, attn_mask, dropout_p, is_causal)
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    plan, in_graph = None, False
    try:
        _require_ours(query, key, value, attn_mask)
        in_graph = traced.is_traced(query, key, value, attn_mask)
        query, key, value, ours = functional.translate(*arguments, **options)
        if in_graph:
            traced.check(query, key, value, attn_mask)
            out = flash_attention(query, key, value, **ours)
        else:
            resolved = resolution.resolve(query, key, value, ours)
            plan = LEDGER.plan(resolved)
            out = resolution.output(query, resolved)
    except _REFUSALS as error:
        reason = str(error).removeprefix("orchard_jit: ")
        return _fall_back(reason, strict, in_graph, arguments, options)
    if plan is None:
        LEDGER.trace(traced.describe(*arguments), None)
    else:
        LEDGER.serve(plan, backward=out.requires_grad)
    return out


def _fall_back(
    reason: str, strict: bool, in_graph: bool, arguments: tuple[Any, ...], options: dict[str, Any]
) -> torch.Tensor:
    """PyTorch's own attention; its own error too, if the call is wrong."""
    out = PYTORCHS(*arguments, **options)
    if strict:
        raise NotImplementedError(f"orchard_jit: strict, and no kernel can take this call: {reason}")
    if in_graph:
        LEDGER.trace(traced.describe(*arguments), reason)
    else:
        LEDGER.fall_back(reason)
    return out


def _require_ours(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None
) -> None:
    """Where somebody else has a say in the call, it is theirs."""
    for tensor in (query, key, value, *(() if attn_mask is None else (attn_mask,))):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"a {type(tensor).__name__} was given for a tensor")
        if _handles_itself(type(tensor)) and not tensor.is_nested:
            raise NotImplementedError(f"a {type(tensor).__name__} has an attention of its own")
    if not torch.backends.cuda.flash_sdp_enabled():
        raise NotImplementedError("torch.nn.attention.sdpa_kernel leaves FLASH_ATTENTION out")


def _handles_itself(kind: Any) -> bool:
    """Whether a class of tensors has a `__torch_function__` of its own."""
    return _underlying(kind) not in (torch._C._disabled_torch_function_impl, _underlying(torch.Tensor))


def _underlying(kind: Any) -> object:
    handler = kind.__torch_function__
    return getattr(handler, "__func__", handler)
