"""`specialize`: block sizes by hand, for a region of code.

What is forced travels with each call as a text, which is part of what the compiled operators look a kernel up
by, and is kept for the backward. So threads don't see each other's, and nothing has to be forgotten.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

from orchard_jit import backends
from orchard_jit.blocks.table import holds
from orchard_jit.variant import BACKENDS, KERNELS, Variant

TILES = ("block_q", "block_k")
"""Queries and keys of a tile, whatever the backend calls them."""

_PROBED_HEAD_DIMS = (32, 64, 80, 96, 128, 256, 512)

Sizes = Mapping[str, int]


class _Here(threading.local):
    text = ""


_here = _Here()
_lock = threading.Lock()

active: tuple[str, ...] = ()
"""What is forced now in any thread. `torch.compile` guards on it, as it can't on what differs by thread."""


def specialize(
    *,
    forward: Sizes | None = None,
    backward: Sizes | None = None,
    decode: Sizes | None = None,
    **sizes: int,
) -> AbstractContextManager[None]:
    """Force block sizes on the kernels of the calls in a `with` block of this thread.

    The backward of such a call has them too, wherever it runs. Inside another one, the inner one counts.
    A kernel in sizes that are new is compiled at the first call.

    Args:
        forward, backward, decode: Sizes for that kernel alone, by block name.
        sizes: Sizes for all kernels that have a block of that name: `block_q` and `block_k`, the queries and
            keys of a tile, on any backend; or a backend's own names, q and k on the CPU; rows, columns,
            simdgroups and split on Metal, of the backward with the prefixes dq_ and dkv_.

    Raises:
        TypeError: No kernel has a block of that name.
        ValueError: A size fits no kernel; the message holds the arithmetic. One that fits at some head dims
            and not at that of a call is refused by the call.

    """
    by_kernel = {"forward": forward, "backward": backward, "decode": decode}
    layer: dict[str, Any] = dict(sizes)
    layer |= {kernel: dict(own) for kernel, own in by_kernel.items() if own}
    _check(layer)
    return _region(layer)


@contextmanager
def _region(layer: Mapping[str, Any]) -> Iterator[None]:
    global active
    before = _here.text
    text = json.dumps([*_layers(before), layer], sort_keys=True)
    with _lock:
        active = (*active, text)
    _here.text = text
    try:
        yield
    finally:
        _here.text = before
        with _lock:
            others = list(active)
            others.remove(text)
            active = tuple(others)


def current() -> str:
    """What is forced in this thread; empty for nothing."""
    return _here.text if active else ""


def written(kernel: str, sizes: Sizes) -> str:
    """Sizes for one kernel, as a call carries them."""
    return json.dumps([{kernel: dict(sizes)}], sort_keys=True)


def applied(text: str, variant: Variant, sizes: Sizes) -> dict[str, int]:
    """A variant's sizes where they are not forced, and those that are.

    Raises:
        ValueError: A name is that of another backend's block: it would go unnoticed.

    """
    result = dict(sizes)
    for layer in _layers(text):
        known = {name for kernel in KERNELS for name in _names(variant.backend, kernel)}
        if foreign := sorted(_all_sizes(layer).keys() - known - {*TILES}):
            raise ValueError(
                f"kernels of the {variant.backend} backend have no block {', '.join(foreign)}; "
                f"they have {', '.join(sorted(known))}"
            )
        result |= _of_kernel(layer, variant.backend, variant.kernel, sizes)
    return result


def _layers(text: str) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = json.loads(text or "[]")
    return layers


def _all_sizes(layer: Mapping[str, Any]) -> dict[str, int]:
    """Of all kernels together."""
    sizes = {name: size for name, size in layer.items() if name not in KERNELS}
    for kernel in KERNELS:
        sizes |= layer.get(kernel, {})
    return sizes


def _of_kernel(layer: Mapping[str, Any], backend: str, kernel: str, names: Iterable[str]) -> dict[str, int]:
    """What a layer forces on a kernel with blocks of these names: the narrower name counts."""
    tiles = backends.get(backend).tiles
    return {
        name: given[chosen]
        for given in (layer, layer.get(kernel, {}))
        for name in names
        for chosen in (tiles.get(name, name), name)
        if chosen in given
    }


@cache
def _names(backend: str, kernel: str) -> tuple[str, ...]:
    """The blocks of a kernel; none if the backend has no such kernel."""
    from orchard_jit.blocks import shipped_table

    entries = (entry for entry in shipped_table(backend).entries if holds("kernel", entry, kernel))
    return tuple(next(entries, {"blocks": ()})["blocks"])


def _check(layer: Mapping[str, Any]) -> None:
    """Refuse what no kernel has, and what fits none that has it."""
    for kernels, given in _scopes(layer):
        _check_names(kernels, given)
        faults = [
            (backend, _fault_of(backend, kernel, tuple(_of_kernel(layer, backend, kernel, names).items())))
            for backend in BACKENDS
            for kernel in kernels
            if _of_kernel(given, backend, kernel, names := _names(backend, kernel))
        ]
        if faults and all(fault for _, fault in faults):
            first = dict(reversed(faults))  # one of each backend is enough
            raise ValueError(f"specialize: {'; '.join(f'{name}: {first[name]}' for name in sorted(first))}")


def _check_names(kernels: Sequence[str], given: Sizes) -> None:
    accepted = {
        *TILES,
        *(name for kernel in kernels for backend in BACKENDS for name in _names(backend, kernel)),
    }
    for name, size in given.items():
        if name not in accepted:
            raise TypeError(
                f"specialize: no {' or '.join(kernels)} kernel has a block {name!r}; "
                f"accepted are {', '.join(sorted(accepted))}"
            )
        if type(size) is not int or size < 1:
            raise ValueError(f"specialize: {name} must be a positive integer, got {size!r}")


def _scopes(layer: Mapping[str, Any]) -> Iterator[tuple[Sequence[str], Sizes]]:
    """(kernels, the sizes given for them)"""
    yield KERNELS, {name: size for name, size in layer.items() if name not in KERNELS}
    for kernel in KERNELS:
        yield (kernel,), layer.get(kernel, {})


@cache
def _fault_of(backend: str, kernel: str, forced: tuple[tuple[str, int], ...]) -> str:
    """Why no head dim can have these sizes; empty if one can."""
    from orchard_jit.blocks import shipped

    device = backends.get(backend)
    faults = []
    for head_dim in _PROBED_HEAD_DIMS:
        variant = Variant(backend, device.archs[0], kernel, "float32", head_dim, head_dim)
        try:
            device.check(variant.with_blocks({**shipped(variant), **dict(forced)}))
        except ValueError as error:
            faults.append(str(error))
        else:
            return ""
    return faults[0]
