"""Where the diagonal lies, and how far from it a query sees."""

from __future__ import annotations

from typing import Literal

import torch

Alignment = Literal["upper_left", "lower_right"]
Causal = bool | Alignment
Window = tuple[int | None, int | None]
Bounds = tuple[int | None, int | None, bool]
"""How far a query sees to the left and to the right of the diagonal, None without end; and whether that ends
in the lower right corner."""

ALIGNMENTS = ("upper_left", "lower_right")


def bounds(
    query: torch.Tensor,
    key: torch.Tensor,
    causal: Causal,
    window: Window | None,
    alignment: Alignment | None,
    *,
    is_needed: bool = False,
    by_batch: bool = False,
) -> Bounds:
    """What the arguments of `flash_attention` mean.

    Args:
        query, key, causal, window, alignment: As there.
        is_needed: Whether something else depends on where the diagonal lies.
        by_batch: Whether the number of keys differs by batch.

    Raises:
        ValueError: They contradict each other, or leave open where the diagonal lies.

    """
    if causal is False and window is None and alignment is None and not is_needed:
        return None, None, False
    left, right = reach(causal, window)
    queries, keys = query.size(-2), key.size(-2)
    unequal = f"{queries} queries and {keys} keys" if by_batch or queries != keys else None
    return left, right, lower_right(causal, alignment, unequal)


def lower_right(causal: Causal, alignment: Alignment | None, unequal: str | None) -> bool:
    """Whether the diagonal ends in the lower right corner; where that would be a guess, an error.

    `unequal` says of which lengths it would be one; for equal ones both corners are the same.
    """
    if causal is not True and causal is not False:
        _require_alignment("causal", causal, "False, True, ")
        if alignment is not None and alignment != causal:
            raise ValueError(f"causal={causal!r} and alignment={alignment!r} contradict each other")
        alignment = causal
    if alignment is not None:
        _require_alignment("alignment", alignment, "None, ")
        return alignment == "lower_right"
    if unequal:
        raise ValueError(
            f"the diagonal is ambiguous for {unequal}: say "
            "alignment='upper_left' (query i and key i, as in PyTorch) or alignment='lower_right' "
            "(the last query and the last key, as in flash-attn)"
        )
    return False


def reach(causal: Causal, window: Window | None) -> tuple[int | None, int | None]:
    """How far a query sees to the left and to the right; None without end."""
    left = right = None
    if window is not None:
        try:
            left, right = (None if bound in (None, -1) else bound for bound in window)
        except (TypeError, ValueError):
            raise ValueError(f"window must be (left, right), got {window!r}") from None
        for bound in (left, right):
            if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int) or bound < 0):
                raise ValueError(f"window must be two integers from 0 on, or None or -1, got {window!r}")
    return left, (right if causal is False else 0)


def _require_alignment(name: str, given: object, others: str) -> None:
    if given not in ALIGNMENTS:
        raise ValueError(f"{name} must be {others}'upper_left' or 'lower_right', got {given!r}")
