"""Flash attention for PyTorch on Apple Silicon and on the CPU, compiled at the first call.

The operators are registered by the import, as a saved graph wants them. A function is imported when it
is first asked for: a plain call needs no parser of score functions, and `orchard-jit doctor` runs
where PyTorch does not.
"""

import warnings
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    from orchard_jit.explanation import Explanation, explain
    from orchard_jit.flash_attn import (
        flash_attn_func,
        flash_attn_fwd,
        flash_attn_kvpacked_func,
        flash_attn_qkvpacked_func,
        flash_attn_varlen_func,
        flash_attn_with_kvcache,
    )
    from orchard_jit.functional import scaled_dot_product_attention
    from orchard_jit.integrations.report import Report, report
    from orchard_jit.integrations.routing import replace_sdpa, restore_sdpa, sdpa
    from orchard_jit.score import ScoreMod
    from orchard_jit.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "BlocksError",
    "CacheError",
    "CompileError",
    "Explanation",
    "MissingVariantError",
    "OrchardError",
    "Report",
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
    "replace_sdpa",
    "report",
    "restore_sdpa",
    "scaled_dot_product_attention",
    "sdpa",
    "specialize",
    "tune",
]

_HOMES = {
    "attention": ["flash_attention"],
    "blocks.forced": ["specialize"],
    "dropout": ["keep_mask"],
    "errors": [name for name in __all__ if name.endswith("Error")],
    "explanation": ["Explanation", "explain"],
    "flash_attn": [name for name in __all__ if name.startswith("flash_attn_")],
    "functional": ["scaled_dot_product_attention"],
    "integrations.report": ["Report", "report"],
    "integrations.routing": ["replace_sdpa", "restore_sdpa", "sdpa"],
    "score": ["ScoreMod"],
    "tuning": ["tune"],
}
"""By module, the names that it holds. No module may have the name of one of them."""

# A missing or broken PyTorch: whatever needs it will say so. NumPy, which PyTorch misses here, nothing needs.
with suppress(ImportError, OSError), warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    import_module("orchard_jit.operators")


def __getattr__(name: str) -> object:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
