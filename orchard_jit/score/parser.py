"""Text -> checked expression."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchard_jit.score.expression import (
    COORDINATES,
    FUNCTIONS,
    MAX_DEPTH,
    MAX_SIZE,
    SCORE,
    SCORE_NODE,
    Node,
    Type,
    number,
    real,
)
from orchard_jit.score.syntax import ACCEPTED, Text

MAX_INTEGER = 2**31 - 1
MAX_FLOAT = 3.4028234663852886e38
"""Of float32, which most kernels compute in."""
MAX_EXPONENT = 64

_ARITHMETIC: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "modulo",
}
_COMPARISONS: dict[type[ast.AST], str] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_SWAPPED: dict[type[ast.AST], str] = {ast.Gt: "less", ast.GtE: "less_equal"}


@dataclass(frozen=True)
class Array:
    """What a name stands for that has to be indexed."""

    position: int
    type: Type
    rank: int


Symbols = Mapping[str, "Array | Node"]


def number_of(what: str, text: str, symbols: Symbols) -> Node:
    """Read an expression of a float, which may use the score.

    Args:
        what: What it is for, in messages.
        text: The expression.
        symbols: What the names mean, beside the score and the coordinates.

    Raises:
        ValueError, TypeError: With the place in the text, and with what is accepted there.

    """
    node = _Parser(Text(what, text), symbols, with_score=True).parse()
    if node.type == "bool":
        raise TypeError(f"{what} must be a number, this is a bool: {text}")
    return real(node)


def truth(what: str, text: str, symbols: Symbols) -> Node:
    """Read an expression of a bool, which may not use the score. Otherwise as `number_of`."""
    node = _Parser(Text(what, text), symbols, with_score=False).parse()
    if node.type != "bool":
        raise TypeError(f"{what} must be a bool, as a comparison is; this is of type {node.type}: {text}")
    return node


def check_size(what: str, node: Node) -> None:
    """Raise ValueError for an expression that is absurdly large."""
    if node.size > MAX_SIZE or node.depth > MAX_DEPTH:
        raise ValueError(
            f"{what} is too large: {MAX_SIZE} operations and {MAX_DEPTH} levels are accepted, "
            f"it has {node.size} and {node.depth}"
        )


class _Parser:
    def __init__(self, text: Text, symbols: Symbols, *, with_score: bool) -> None:
        self._text = text
        self._symbols = symbols
        self._with_score = with_score
        self._depth = 0

    def parse(self) -> Node:
        return self._node(self._text.tree())

    def _node(self, tree: ast.expr) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ValueError(f"{self._text.what} is nested too deeply: {MAX_DEPTH} levels are accepted")
        node = self._read(tree)
        self._depth -= 1
        check_size(self._text.what, node)
        return node

    def _read(self, tree: ast.expr) -> Node:
        match tree:
            case ast.Constant():
                return self._constant(tree)
            case ast.Name():
                return self._name(tree)
            case ast.Subscript():
                return self._subscript(tree)
            case ast.UnaryOp():
                return self._unary(tree)
            case ast.BinOp(op=ast.Pow()):
                return self._power(tree)
            case ast.BinOp():
                return self._binary(tree)
            case ast.Compare():
                return self._comparison(tree)
            case ast.BoolOp():
                return self._boolean(tree)
            case ast.IfExp():
                return self._select(tree, tree.test, tree.body, tree.orelse)
            case ast.Call():
                return self._call(tree)
        raise self._error(ValueError, tree, "this is not accepted", ACCEPTED)

    # Leaves.

    def _constant(self, tree: ast.Constant) -> Node:
        value = tree.value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(ValueError, tree, f"{value!r} is not accepted; constants are ints and floats")
        largest = MAX_INTEGER if isinstance(value, int) else MAX_FLOAT
        if value > largest:
            raise self._error(
                ValueError, tree, f"numbers have 32 bits; the largest {type(value).__name__} is {largest}"
            )
        return number(value)

    def _name(self, tree: ast.Name) -> Node:
        name = tree.id
        if name == SCORE:
            if not self._with_score:
                raise self._error(ValueError, tree, f"a {self._text.what} cannot use the score")
            return SCORE_NODE
        if name in COORDINATES:
            return Node("name", "int", (), name)
        symbol = self._symbols.get(name)
        if isinstance(symbol, Array):
            indices = ", ".join("..." for _ in range(symbol.rank))
            raise self._error(TypeError, tree, f"{name} is a tensor: index it, as {name}[{indices}]")
        if symbol is None:
            if name in FUNCTIONS:
                raise self._error(ValueError, tree, f"{name} is a function: call it, as {name}(...)")
            raise self._unknown(tree, "name", name, self._names)
        return symbol

    def _subscript(self, tree: ast.Subscript) -> Node:
        base = tree.value
        symbol = self._symbols.get(base.id) if isinstance(base, ast.Name) else None
        if not isinstance(base, ast.Name) or not isinstance(symbol, Array):
            if isinstance(base, ast.Name) and base.id not in self._names:
                raise self._unknown(base, "name", base.id, self._names)
            raise self._error(TypeError, base, "only a tensor can be indexed")
        trees = tree.slice.elts if isinstance(tree.slice, ast.Tuple) else [tree.slice]
        if len(trees) != symbol.rank:
            wanted = f"{symbol.rank} " + ("index" if symbol.rank == 1 else "indices")
            raise self._error(TypeError, tree, f"{base.id} takes {wanted}, got {len(trees)}")
        return Node("element", symbol.type, tuple(self._index(index) for index in trees), symbol.position)

    def _index(self, tree: ast.expr) -> Node:
        index = self._node(tree)
        if index.type != "int":
            raise self._error(TypeError, tree, f"an index must be an int, this is of type {index.type}")
        if index.uses_score:
            raise self._error(ValueError, tree, "an index cannot depend on the score")
        return index

    # Operators.

    def _unary(self, tree: ast.UnaryOp) -> Node:
        if isinstance(tree.op, ast.Not):
            return Node("negation", "bool", (self._truth(tree.operand, "not"),))
        if not isinstance(tree.op, ast.USub):
            raise self._error(ValueError, tree, "this operator is not accepted", ACCEPTED)
        operand = self._arithmetic_operand(tree.operand)
        return Node("negate", operand.type, (operand,))

    def _binary(self, tree: ast.BinOp) -> Node:
        operator = _ARITHMETIC.get(type(tree.op))
        if operator is None:
            raise self._error(ValueError, tree, "this operator is not accepted", ACCEPTED)
        left, right = (self._arithmetic_operand(operand) for operand in (tree.left, tree.right))
        if (
            operator in ("divide", "floor_divide", "modulo")
            and right.operator == "number"
            and right.value == 0
        ):
            raise self._error(ValueError, tree.right, "a division by zero")
        if operator == "divide":
            return Node(operator, "float", (real(left), real(right)))
        if operator in ("floor_divide", "modulo"):
            for operand, node in ((tree.left, left), (tree.right, right)):
                if node.type != "int":
                    raise self._error(
                        TypeError, operand, "// and % take ints; for floats there is floor(a / b)"
                    )
        return self._numeric(operator, left, right)

    def _power(self, tree: ast.BinOp) -> Node:
        base, sign, exponent = self._arithmetic_operand(tree.left), 1, tree.right
        if isinstance(exponent, ast.UnaryOp) and isinstance(exponent.op, ast.USub):
            sign, exponent = -1, exponent.operand
        value = exponent.value if isinstance(exponent, ast.Constant) else None
        if type(value) is not int or value > MAX_EXPONENT:
            raise self._error(
                ValueError,
                tree.right,
                "this exponent is not accepted",
                f"integer literals up to {MAX_EXPONENT}; exp, exp2, sqrt",
            )
        if value == 0:
            return number(1) if base.type == "int" else number(1.0)
        if sign < 0:
            return Node("divide", "float", (number(1.0), _to_the(real(base), value)))
        return _to_the(base, value)

    def _comparison(self, tree: ast.Compare) -> Node:
        trees = (tree.left, *tree.comparators)
        nodes = [self._node(operand) for operand in trees]
        pairs = [
            self._compared(tree, operator, trees[i : i + 2], nodes[i : i + 2])
            for i, operator in enumerate(tree.ops)
        ]
        return _joined("conjunction", pairs)

    def _compared(
        self, tree: ast.Compare, operator: ast.cmpop, trees: Sequence[ast.expr], nodes: Sequence[Node]
    ) -> Node:
        name = _COMPARISONS.get(type(operator)) or _SWAPPED.get(type(operator))
        if name is None:
            raise self._error(ValueError, tree, "this comparison is not accepted", "< <= > >= == !=")
        types = {node.type for node in nodes}
        if "bool" in types and (len(types) > 1 or name in ("less", "less_equal")):
            at = trees[[node.type for node in nodes].index("bool")]
            raise self._error(TypeError, at, "this is a bool; bools compare by == and != with bools alone")
        left, right = nodes if type(operator) in _COMPARISONS else reversed(nodes)
        return Node(name, "bool", _alike(left, right))

    def _boolean(self, tree: ast.BoolOp) -> Node:
        word, name = ("and", "conjunction") if isinstance(tree.op, ast.And) else ("or", "disjunction")
        return _joined(name, [self._truth(operand, word) for operand in tree.values])

    def _select(self, tree: ast.expr, condition: ast.expr, one: ast.expr, other: ast.expr) -> Node:
        test, left, right = self._truth(condition, "a condition"), self._node(one), self._node(other)
        if (left.type == "bool") != (right.type == "bool"):
            raise self._error(
                TypeError, tree, f"one side is of type {left.type}, the other of type {right.type}"
            )
        left, right = _alike(left, right)
        return Node("select", left.type, (test, left, right))

    def _call(self, tree: ast.Call) -> Node:
        if not isinstance(tree.func, ast.Name):
            raise self._error(ValueError, tree.func, "this cannot be called", ", ".join(FUNCTIONS))
        name = tree.func.id
        if name not in FUNCTIONS:
            raise self._unknown(tree.func, "function", name, FUNCTIONS)
        if tree.keywords:
            raise self._error(ValueError, tree, f"{name} takes no keywords")
        least, most = {"where": (3, 3), "min": (2, None), "max": (2, None)}.get(name, (1, 1))
        if len(tree.args) < least or (most is not None and len(tree.args) > most):
            wanted = f"{least} argument{'s' * (least > 1)}" + ("" if most else " or more")
            raise self._error(TypeError, tree, f"{name} takes {wanted}, got {len(tree.args)}")
        if name == "where":
            return self._select(tree, *tree.args)
        arguments = [self._arithmetic_operand(argument) for argument in tree.args]
        if name in ("min", "max"):
            result = arguments[0]
            for argument in arguments[1:]:
                result = self._numeric(name, result, argument)
            return result
        if name == "abs":
            return Node(name, arguments[0].type, tuple(arguments))
        return Node(name, "float", (real(arguments[0]),))

    # Types.

    def _arithmetic_operand(self, tree: ast.expr) -> Node:
        node = self._node(tree)
        if node.type == "bool":
            raise self._error(TypeError, tree, "this is a bool, not a number; where(c, 1, 0) makes one of it")
        return node

    def _truth(self, tree: ast.expr, what: str) -> Node:
        node = self._node(tree)
        if node.type != "bool":
            raise self._error(
                TypeError, tree, f"{what} takes a bool, this is of type {node.type}; compare it, as with != 0"
            )
        return node

    def _numeric(self, operator: str, left: Node, right: Node) -> Node:
        operands = _alike(left, right)
        return Node(operator, operands[0].type, operands)

    # Errors.

    @property
    def _names(self) -> list[str]:
        return [*([SCORE] if self._with_score else []), *COORDINATES, *self._symbols]

    def _unknown(self, tree: ast.expr, kind: str, name: str, accepted: Sequence[str]) -> Exception:
        near = difflib.get_close_matches(name, accepted, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return self._error(ValueError, tree, f"there is no {kind} {name}{hint}", ", ".join(accepted))

    def _error(self, error: type[Exception], tree: ast.expr, message: str, accepted: str = "") -> Exception:
        return self._text.error(error, tree, message, accepted)


def _to_the(base: Node, exponent: int) -> Node:
    return base if exponent == 1 else Node("power", base.type, (base,), exponent)


def _alike(left: Node, right: Node) -> tuple[Node, Node]:
    """Both ints, both floats, or both bools."""
    return (left, right) if left.type == right.type else (real(left), real(right))


def _joined(operator: str, nodes: Sequence[Node]) -> Node:
    result = nodes[0]
    for node in nodes[1:]:
        result = Node(operator, "bool", (result, node))
    return result
