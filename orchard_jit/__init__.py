"""Flash attention for PyTorch on Apple Silicon and on the CPU, compiled at the first call."""

from typing import TYPE_CHECKING

from orchard_jit.attention import flash_attention
from orchard_jit.blocks.forced import specialize
from orchard_jit.dropout import keep_mask
from orchard_jit.errors import (
    BlocksError,
    CacheError,
    CompileError,
    MissingVariantError,
    OrchardError,
    ToolchainError,
)
from orchard_jit.explain import Explanation, explain
from orchard_jit.flash_attn import (
    flash_attn_func,
    flash_attn_fwd,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)
from orchard_jit.sdpa import scaled_dot_product_attention
from orchard_jit.tuning import tune

if TYPE_CHECKING:
    from orchard_jit.score import ScoreMod

__version__ = "0.1.0"

__all__ = [
    "BlocksError",
    "CacheError",
    "CompileError",
    "Explanation",
    "MissingVariantError",
    "OrchardError",
    "ScoreMod",
    "ToolchainError",
    "explain",
    "flash_attention",
    "flash_attn_func",
    "flash_attn_fwd",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "keep_mask",
    "scaled_dot_product_attention",
    "specialize",
    "tune",
]


def __getattr__(name: str) -> object:
    """`ScoreMod` when somebody asks for it: a plain call need not import its parser."""
    if name != "ScoreMod":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from orchard_jit.score import ScoreMod

    return ScoreMod
