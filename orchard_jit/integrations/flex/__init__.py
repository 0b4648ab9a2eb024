"""FlexAttention's interface: score_mod and mask_mod are traced, and compiled into our kernels."""

from orchard_jit.integrations.flex.attention import flex_attention

__all__ = ["flex_attention"]
