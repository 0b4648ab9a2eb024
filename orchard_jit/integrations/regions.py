"""The regions with an attention of their own that a thread is in, and autograd's threads with it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch

Attention = Callable[..., torch.Tensor]
"""With the signature of PyTorch's `scaled_dot_product_attention`."""

_KEY = "orchard_jit.sdpa"


def current() -> tuple[Attention, ...]:
    """The attention of each region that this thread is in, the innermost last."""
    return torch._C._get_obj_in_tls(_KEY) if torch._C._is_key_in_tls(_KEY) else ()


def enter(regions: tuple[Attention, ...]) -> None:
    """Let this thread be in these regions. PyTorch keeps them and takes them into autograd's threads."""
    _keep(_KEY, regions)
    if _FORGETS_TO_HOLD:
        _hold(regions)


def _keep(key: str, kept: object) -> None:
    torch._C._stash_obj_in_tls(key, kept)


def _hold(kept: object) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def _forgets_to_hold() -> bool:
    """Whether PyTorch takes no reference to what it keeps, though it will let one go. 2.5 does."""
    probe = object()
    before = sys.getrefcount(probe)
    _keep("orchard_jit.probe", probe)
    forgets = sys.getrefcount(probe) == before
    if forgets:
        _hold(probe)
    return forgets


_FORGETS_TO_HOLD = _forgets_to_hold()
