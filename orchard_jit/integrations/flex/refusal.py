"""What no kernel can do is refused: why, and in which line of the user's."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import orchard_jit

ACCEPTED = (
    "+ - * / // % **, comparisons, & | ^ ~ of bools, torch.where, masked_fill, abs, minimum, maximum, clamp, "
    "relu, sign, floor, ceil, exp, exp2, log, log2, sqrt, rsqrt, tanh, sigmoid, silu, sin, cos, casts, and "
    "tensors indexed by b, h, q_idx, kv_idx and what is computed of them"
)

_NOT_THE_USERS = tuple(str(Path(package.__path__[0])) + os.sep for package in (torch, orchard_jit))


class Refusal(Exception):  # noqa: N818  # it becomes an error where the place in the user's code is known
    """An operation that no score expression can have, and why."""


def explained(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns; its errors say what they are about, and where.

    Args:
        name: What is traced.
        function: What may refuse.
        *args: Its arguments.

    """
    try:
        return function(*args)
    except IndexError as error:
        raise IndexError(f"flex_attention: {name}: {error}\n    {place()}") from None
    except Refusal as refusal:
        raise NotImplementedError(
            f"flex_attention: {name} cannot be compiled: {refusal}\n    {place()}\nAccepted: {ACCEPTED}"
        ) from None


def place() -> str:
    """The line of the user's that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return f"{file}:{line}: {linecache.getline(file, line).strip()}"
