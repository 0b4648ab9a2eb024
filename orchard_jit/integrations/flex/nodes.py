"""Expressions as PyTorch's types have it: bools that count, and integers that become floats beside floats.

A "number" may be anything here, negative, infinite or a bool; what is known of one is settled at once.
"""

from __future__ import annotations

from orchard_jit.integrations.flex.refusal import Refusal
from orchard_jit.score.expression import Node, Type, real


def number(value: bool | int | float) -> Node:
    """A constant."""
    kinds: dict[type, Type] = {bool: "bool", int: "int", float: "float"}
    return Node("number", kinds[type(value)], (), value)


TRUE, FALSE = number(True), number(False)


def constant(node: Node) -> bool | int | float:
    """The value of a number."""
    assert not isinstance(node.value, str)
    return node.value


def select(condition: Node, one: Node, other: Node) -> Node:
    """Either side."""
    if condition.type != "bool":
        raise Refusal("a condition must be a bool, as a comparison is")
    if condition.operator == "number":
        return one if condition.value else other
    one, other = alike(one, other)
    return Node("select", one.type, (condition, one, other))


def conjunction(a: Node, b: Node) -> Node:
    """Both."""
    if a.operator == "number":
        return b if a.value else FALSE
    if b.operator == "number":
        return a if b.value else FALSE
    return Node("conjunction", "bool", (a, b))


def disjunction(a: Node, b: Node) -> Node:
    """Either."""
    if a.operator == "number":
        return TRUE if a.value else b
    if b.operator == "number":
        return TRUE if b.value else a
    return Node("disjunction", "bool", (a, b))


def negation(a: Node) -> Node:
    """Not. Of integers, another comparison; of floats, none that is true where there is NaN."""
    if a.operator == "number":
        return number(not a.value)
    if a.operator in ("less", "less_equal") and a.operands[0].type == "int":
        return Node("less" if a.operator == "less_equal" else "less_equal", "bool", a.operands[::-1])
    return Node("negation", "bool", (a,))


_OF_BOOLS = {"add": disjunction, "max": disjunction, "multiply": conjunction, "min": conjunction}


def arithmetic(operator: str, a: Node, b: Node) -> Node:
    """Of ints or floats, or of bools as PyTorch has it; among others a bool counts as 0 or 1."""
    if a.type == b.type == "bool":
        if operator not in _OF_BOOLS:
            raise Refusal(f"{operator} is not accepted of bools")
        return _OF_BOOLS[operator](a, b)
    a, b = alike(counted(a), counted(b))
    return Node(operator, a.type, (a, b))


def compare(operator: str, a: Node, b: Node) -> Node:
    """As `arithmetic`, and bools are equal or not."""
    if not (a.type == b.type == "bool" and operator in ("equal", "not_equal")):
        a, b = counted(a), counted(b)
    return Node(operator, "bool", alike(a, b))


def counted(a: Node) -> Node:
    """A bool as 0 or 1."""
    return select(a, number(1), number(0)) if a.type == "bool" else a


def alike(a: Node, b: Node) -> tuple[Node, Node]:
    """Both of one type."""
    if a.type == b.type:
        return a, b
    a, b = counted(a), counted(b)
    return (a, b) if a.type == b.type else (real(a), real(b))
