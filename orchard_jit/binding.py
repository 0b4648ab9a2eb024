"""The compiled operators, and the way back from them to Python when a kernel is missing."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Sequence
from typing import NoReturn

from orchard_jit.errors import CompileError
from orchard_jit.jit import library, recipe, recording
from orchard_jit.selection import select
from orchard_jit.variant import Variant


class _Kernel(ctypes.Structure):
    """`orchard::Kernel` of templates/binding/kernels.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in recipe.ENTRY_POINTS)


_Resolver = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.POINTER(_Kernel))

_pending = threading.local()
_library: ctypes.CDLL | None = None


def load(also: Sequence[Variant] = ()) -> ctypes.CDLL:
    """Load the operators' kernels into PyTorch's dispatcher, once per process.

    Args:
        also: Variants that the caller is about to need; what has to be compiled is compiled side by side.

    """
    global _library
    if _library is None:
        recipes = [recipe.for_binding(), *(recipe.for_variant(variant) for variant in also)]
        operators = library.load_all(recipes)[0]
        operators.orchard_set_resolver(_resolver)
        _library = operators
    return _library


def forget_kernels() -> None:
    """Let the next call of every kind look its variant up again."""
    if _library is not None:
        _library.orchard_forget_kernels()


def refuse(reason: str) -> NoReturn:
    """Raise why a call has no kernel. The operators end it so, because what Python raises keeps its type.

    Args:
        reason: What a plug-in's compiler says; of no account where the resolver has just failed.

    Raises:
        CompileError: For this reason.
        BaseException: What the resolver has met.

    """
    exception: BaseException | None = getattr(_pending, "exception", None)
    _pending.exception = None
    raise CompileError(reason) if exception is None else exception


@_Resolver
def _resolver(requests: bytes, kernels: ctypes.Array[_Kernel]) -> int:
    """Fill `kernels` with the entry points of the variants that `requests` (a JSON list) needs."""
    try:
        variants = [select(**request) for request in json.loads(requests)]
        recording.note(variants)
        plug_ins = library.load_all([recipe.for_variant(variant) for variant in variants])
        for index, plug_in in enumerate(plug_ins):
            for name in recipe.ENTRY_POINTS:
                function = getattr(plug_in, recipe.entry_point(name))
                setattr(kernels[index], name, ctypes.cast(function, ctypes.c_void_p).value)
    except BaseException as exception:  # KeyboardInterrupt too: none can leave a callback of ctypes
        _pending.exception = exception
        return 1
    return 0
