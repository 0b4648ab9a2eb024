"""Checked expressions: typed trees, and the canonical text that one is written down as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

Type = Literal["int", "float", "bool"]

COORDINATES = ("b", "h", "q", "kv", "q_len", "kv_len")
SCORE = "score"

FUNCTIONS = (
    *("abs", "min", "max", "where"),
    *("exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "sin", "cos", "floor"),
)

MAX_SIZE = 500
MAX_DEPTH = 100


class Infix(NamedTuple):
    """How an operator is written between its operands; a larger precedence binds tighter."""

    symbol: str
    precedence: int


INFIXES = {
    "disjunction": Infix("or", 1),
    "conjunction": Infix("and", 2),
    "less": Infix("<", 4),
    "less_equal": Infix("<=", 4),
    "equal": Infix("==", 4),
    "not_equal": Infix("!=", 4),
    "add": Infix("+", 5),
    "subtract": Infix("-", 5),
    "multiply": Infix("*", 6),
    "divide": Infix("/", 6),
    "floor_divide": Infix("//", 6),
    "modulo": Infix("%", 6),
}
_NEGATION, _COMPARISON, _SIGN, _POWER, _ATOM = 3, 4, 7, 8, 9


@dataclass(frozen=True)
class Node:
    """An operator and its operands.

    Attributes:
        operator: A key of `INFIXES`, a function's name ("select" for where), "negate", "negation", "power",
            "real" (an int that becomes a float), or a leaf: "number", "name", "scalar", or "element" of an
            array.
        type: Of its value.
        operands: Those of "element" are the indices.
        value: Of a number; the name; the position of a scalar or an array; the exponent of a power.

    """

    operator: str
    type: Type
    operands: tuple[Node, ...] = ()
    value: int | float | str = 0
    size: int = field(init=False, compare=False)
    depth: int = field(init=False, compare=False)
    uses_score: bool = field(init=False, compare=False)
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        derived = {
            "size": 1 + sum(operand.size for operand in self.operands),
            "depth": 1 + max((operand.depth for operand in self.operands), default=0),
            "uses_score": self.value == SCORE or any(operand.uses_score for operand in self.operands),
            "_hash": hash((self.operator, self.type, self.operands, self.value)),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def __hash__(self) -> int:
        return self._hash  # once: that of a tree takes a walk through it

    def __iter__(self) -> Iterator[Node]:
        """The nodes of the tree, this one first."""
        yield self
        for operand in self.operands:
            yield from operand

    def renumbered(self, arrays: int, scalars: int) -> Node:
        """The same with the positions of its arrays and scalars moved by so many."""
        shift = {"element": arrays, "scalar": scalars}.get(self.operator)
        operands = tuple(operand.renumbered(arrays, scalars) for operand in self.operands)
        if shift is None:
            return replace(self, operands=operands)
        return replace(self, operands=operands, value=int(self.value) + shift)


def number(value: int | float) -> Node:
    """A literal, which is not negative."""
    return Node("number", "float" if isinstance(value, float) else "int", (), value)


def real(node: Node) -> Node:
    """As a float."""
    if node.type == "float":
        return node
    return number(float(node.value)) if node.operator == "number" else Node("real", "float", (node,))


SCORE_NODE = Node("name", "float", (), SCORE)


def text_of(node: Node) -> str:
    """The expression in its own language, where arrays are array0, array1, ... and scalars scalar0, ..."""
    return _written(node)[0]


def _written(node: Node) -> tuple[str, int]:
    """The text and its precedence."""
    operator, operands = node.operator, node.operands
    if operator in INFIXES:
        symbol, precedence = INFIXES[operator]
        # Operators associate to the left; comparisons would make a chain.
        left = _within(operands[0], precedence + (precedence == _COMPARISON))
        return f"{left} {symbol} {_within(operands[1], precedence + 1)}", precedence
    match operator:
        case "number":
            return repr(node.value), _ATOM
        case "name":
            return str(node.value), _ATOM
        case "scalar":
            return f"scalar{node.value}", _ATOM
        case "element":
            return f"array{node.value}[{_listed(operands)}]", _ATOM
        case "real":
            return _written(operands[0])
        case "negation":
            return f"not {_within(operands[0], _NEGATION)}", _NEGATION
        case "negate":
            return f"-{_within(operands[0], _SIGN)}", _SIGN
        case "power":
            return f"{_within(operands[0], _ATOM)} ** {node.value}", _POWER
        case "select":
            return f"where({_listed(operands)})", _ATOM
        case _:
            return f"{operator}({_listed(operands)})", _ATOM


def _within(node: Node, least: int) -> str:
    text, precedence = _written(node)
    return text if precedence >= least else f"({text})"


def _listed(nodes: tuple[Node, ...]) -> str:
    return ", ".join(_written(node)[0] for node in nodes)
