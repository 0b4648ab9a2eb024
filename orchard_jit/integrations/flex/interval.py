"""Between which bounds an index lies, by interval arithmetic over the coordinates."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from itertools import product

from orchard_jit.integrations.flex.nodes import constant
from orchard_jit.score.expression import Node

_LARGEST = 2**31 - 1
_MONOTONE: dict[str, Callable[..., int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "negate": operator.neg,
    "min": min,
    "max": max,
}
"""In each operand: extreme where operands are."""


def check_index(node: Node, size: int, sizes: Mapping[str, int]) -> bool:
    """Can the index be negative?

    Raises:
        IndexError: It certainly leaves a dimension of this size somewhere.

    """
    low, high = _interval(node, sizes)
    if (low < -size or high >= size) and _is_exact(node):
        raise IndexError(f"an index from {low} to {high} is out of bounds for a dimension of size {size}")
    return low < 0


def _interval(node: Node, sizes: Mapping[str, int]) -> tuple[int, int]:
    if node.operator == "number":
        return int(constant(node)), int(constant(node))
    if node.operator == "name":
        return 0, sizes[str(node.value)] - 1
    intervals = [_interval(operand, sizes) for operand in node.operands if operand.type == "int"]
    if node.operator in _MONOTONE:
        ends = [_MONOTONE[node.operator](*corner) for corner in product(*intervals)]
        return min(ends), max(ends)
    match node.operator, intervals:
        case "floor_divide", [(low, high), (divisor, last)] if 0 < divisor == last:
            return low // divisor, high // divisor
        case "modulo", [_, (divisor, last)] if 0 < divisor == last:
            return 0, divisor - 1
        case "abs", [(low, high)]:
            return max(low, -high, 0), max(-low, high)
        case "select", [one, other]:
            return min(one[0], other[0]), max(one[1], other[1])
    return -_LARGEST - 1, _LARGEST


def _is_exact(node: Node) -> bool:
    """Whether both bounds are reached: coordinates that occur once each are independent."""
    names = [part.value for part in node if part.operator == "name"]
    return len(set(names)) == len(names) and all(
        part.operator in ("number", "name", *_MONOTONE) for part in node
    )
