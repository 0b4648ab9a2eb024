"""Flash attention for PyTorch on Apple Silicon and on the CPU, compiled at the first call."""

from orchard_jit.attention import (
    flash_attention,
    flash_attn_func,
    flash_attn_fwd,
    scaled_dot_product_attention,
)
from orchard_jit.errors import CacheError, CompileError, MissingVariantError, OrchardError, ToolchainError

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "CompileError",
    "MissingVariantError",
    "OrchardError",
    "ToolchainError",
    "flash_attention",
    "flash_attn_func",
    "flash_attn_fwd",
    "scaled_dot_product_attention",
]
