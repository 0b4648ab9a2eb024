"""What the values of options are, and how they are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import TypeVar

from orchard_jit.variant import MAX_HEAD_DIM

_Value = TypeVar("_Value")

_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def head_dim(text: str) -> int:
    """As "64"."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_HEAD_DIM:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {MAX_HEAD_DIM}, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """As "7"."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1, got {text!r}")
    return int(text)


def some(read: Callable[[str], _Value]) -> Callable[[str], list[_Value]]:
    """As "1,2": values with commas between them."""
    return lambda text: [read(part) for part in text.split(",")]


def one_of(accepted: Collection[str]) -> Callable[[str], list[str]]:
    """As "float32,float16": names with commas between them."""

    def read(text: str) -> list[str]:
        unknown = [part for part in text.split(",") if part not in accepted]
        if unknown:
            raise argparse.ArgumentTypeError(f"must be of {', '.join(accepted)}; got {', '.join(unknown)!r}")
        return text.split(",")

    return read


def blocks(text: str) -> dict[str, int]:
    """As "q=64,k=32"."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and size.isdecimal() and int(size) for name, _, size in pairs):
        raise argparse.ArgumentTypeError(f"must be as in q=64,k=32, got {text!r}")
    return {name: int(size) for name, _, size in pairs}


def shape(text: str) -> tuple[int, ...]:
    """As "1,8,1024,1024,64"."""
    sizes = text.split(",")
    if len(sizes) != 5 or not all(size.isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"must be B,H,Sq,Sk,D, as in 1,8,1024,1024,64; got {text!r}")
    return (*map(positive, sizes[:-1]), head_dim(sizes[-1]))


def seconds(text: str) -> float:
    """As "60s", "2min" or "90"."""
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    try:
        value = float(number) * _SECONDS[text[len(number) :] or "s"]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a time, as in 60s or 2min, got {text!r}")
    return value
