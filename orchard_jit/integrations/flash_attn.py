"""flash-attn's name: `import flash_attn` finds our functions, on a Mac or on a CPU.

    from orchard_jit.integrations import flash_attn
    flash_attn.install()

It holds what is documented of flash-attn 2's interface; anything else is an ImportError or AttributeError,
as in an old release.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import threading
from collections.abc import Mapping
from types import ModuleType

import torch

import orchard_jit
from orchard_jit.flash_attn import Result
from orchard_jit.integrations import bert_padding

VERSION = "2.8.3"
"""The release whose interface is served; code asks `flash_attn.__version__` for what it can call."""

_NAME = "flash_attn"
_installing = threading.Lock()


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int, *args: object, **kwargs: object
) -> Result:
    """`flash_attn_varlen_func` of qkv (total, 3, H, D), read in place."""
    q, k, v = qkv.unbind(1)
    return orchard_jit.flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        *args,  # type: ignore[arg-type]
        **kwargs,  # type: ignore[arg-type]
    )


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *args: object,
    **kwargs: object,
) -> Result:
    """`flash_attn_varlen_func` of kv (total_k, 2, Hk, D), read in place."""
    k, v = kv.unbind(1)
    return orchard_jit.flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        *args,  # type: ignore[arg-type]
        **kwargs,  # type: ignore[arg-type]
    )


FUNCTIONS = {
    function.__name__: function
    for function in (
        orchard_jit.flash_attn_func,
        orchard_jit.flash_attn_kvpacked_func,
        orchard_jit.flash_attn_qkvpacked_func,
        orchard_jit.flash_attn_varlen_func,
        flash_attn_varlen_kvpacked_func,
        flash_attn_varlen_qkvpacked_func,
        orchard_jit.flash_attn_with_kvcache,
    )
}
"""What both `flash_attn` and `flash_attn.flash_attn_interface` hold."""

PADDING = {
    function.__name__: function
    for function in (
        bert_padding.index_first_axis,
        bert_padding.index_put_first_axis,
        bert_padding.pad_input,
        bert_padding.unpad_input,
    )
}
"""What `flash_attn.bert_padding` holds."""


def install() -> None:
    """Let `import flash_attn` find our functions; once more changes nothing.

    Raises:
        ImportError: A flash-attn is installed, which would be hidden.

    """
    with _installing:
        if _is_ours():
            return
        if _NAME in sys.modules or importlib.util.find_spec(_NAME) is not None:
            raise ImportError(
                "a flash_attn is installed, which orchard_jit does not hide; call "
                "orchard_jit.flash_attn_func, or uninstall it (pip uninstall flash-attn)"
            )
        package = _module(_NAME, FUNCTIONS)
        package.__path__ = []
        package.__version__ = VERSION  # type: ignore[attr-defined]
        interface = _module(f"{_NAME}.flash_attn_interface", FUNCTIONS)
        padding = _module(f"{_NAME}.bert_padding", PADDING)
        for module in (package, interface, padding):
            sys.modules[module.__name__] = module
        package.flash_attn_interface, package.bert_padding = interface, padding  # type: ignore[attr-defined]


def uninstall() -> None:
    """Undo `install`. Who has imported our functions keeps them."""
    with _installing:
        if _is_ours():
            for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
                del sys.modules[name]


def _is_ours() -> bool:
    installed = getattr(sys.modules.get(_NAME), "flash_attn_func", None)
    return installed is orchard_jit.flash_attn_func


def _module(name: str, contents: Mapping[str, object]) -> ModuleType:
    module = ModuleType(name, f"{name} by orchard_jit.")
    vars(module).update(contents)
    # As every module that was found has one: `importlib.util.find_spec` wants it.
    module.__spec__ = importlib.machinery.ModuleSpec(name, loader=None, is_package=name == _NAME)
    return module
