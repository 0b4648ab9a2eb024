"""The derivative of an expression with respect to the score, by SymPy.

What does not depend on the score is a symbol to SymPy, whatever it is made of, and so are conditions; of
functions it knows the derivatives alone. So it collects and cancels (as the caps of cap * tanh(score / cap)),
and rewrites nothing.

At kinks it is as in PyTorch: 0 for abs at 0, half of each side for min and max of equals, 0 for floor.
where() and `a if c else b` have the derivative of the side that is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, reduce
from typing import Any, TypeAlias

import sympy  # type: ignore[import-untyped]

from orchard_jit.score.expression import SCORE_NODE, Node, number, real
from orchard_jit.score.parser import MAX_FLOAT

_LARGEST_EXACT = 1000
"""Literals up to here are numbers to SymPy, so that it can add and cancel them; others are symbols."""

_Expr: TypeAlias = Any  # SymPy has no types


def derivative(node: Node) -> Node:
    """The derivative of `node` with respect to the score.

    Raises:
        ValueError: It is too large for SymPy, or divides by what is 0; the user has to give it.

    """
    writer = _Writer()
    try:
        return _Reader(writer.nodes).node(sympy.diff(writer.expression(node), writer.symbol(SCORE_NODE)))
    except (RecursionError, OverflowError):
        raise ValueError("SymPy cannot derive this score; pass its derivative=") from None


class _Function(sympy.Function):  # type: ignore[misc]
    """A function by its name, of which SymPy knows the derivatives alone."""

    def fdiff(self, argindex: int = 1) -> _Expr:
        return _PARTIALS[type(self).__name__](self, *self.args)[argindex - 1]


class _Select(sympy.Function):  # type: ignore[misc]
    def _eval_derivative(self, symbol: _Expr) -> _Expr:
        condition, *sides = self.args
        one, other = (side.diff(symbol) for side in sides)
        return one if one == other else _Select(condition, one, other)


@cache
def _function(name: str) -> type[_Function]:
    return type(name, (_Function,), {})


def _power(base: _Expr, exponent: _Expr) -> _Expr:
    return base if exponent == 1 else _function("power")(base, exponent)


_PARTIALS: dict[str, Callable[..., tuple[_Expr, ...]]] = {
    "abs": lambda f, x: (_function("sign")(x),),
    "min": lambda f, x, y: (_function("share")(y, x), _function("share")(x, y)),
    "max": lambda f, x, y: (_function("share")(x, y), _function("share")(y, x)),
    "exp": lambda f, x: (f,),
    "exp2": lambda f, x: (f * _function("ln2")(),),
    "log": lambda f, x: (1 / x,),
    "log2": lambda f, x: (1 / (x * _function("ln2")()),),
    "sqrt": lambda f, x: (1 / (2 * f),),
    "tanh": lambda f, x: (1 - f**2,),
    "sigmoid": lambda f, x: (f * (1 - f),),
    "sin": lambda f, x: (_function("cos")(x),),
    "cos": lambda f, x: (-_function("sin")(x),),
    "floor": lambda f, x: (sympy.Integer(0),),
    # Not SymPy's own power, which would take it apart: (x / c) ** 9 into two numbers that may both overflow.
    "power": lambda f, x, n: (n * _power(x, n - 1), sympy.Integer(0)),
}


class _Writer:
    """Nodes -> SymPy. `nodes` says what the symbols stand for."""

    def __init__(self) -> None:
        self._symbols: dict[Node, _Expr] = {}
        self.nodes: dict[_Expr, Node] = {}

    def symbol(self, node: Node) -> _Expr:
        if node not in self._symbols:
            symbol = sympy.Symbol(f"x{len(self._symbols)}", real=True)
            self._symbols[node], self.nodes[symbol] = symbol, node
        return self._symbols[node]

    def expression(self, node: Node) -> _Expr:
        if node.operator == "number" and node.value in range(_LARGEST_EXACT + 1):
            return sympy.Integer(int(node.value))
        if node == SCORE_NODE or node.type != "float" or not node.uses_score:
            return self.symbol(node)
        if node.operator == "select":
            condition, *sides = node.operands
            return _Select(self.symbol(condition), *map(self.expression, sides))
        operands = [self.expression(operand) for operand in node.operands]
        match node.operator:
            case "add":
                return operands[0] + operands[1]
            case "subtract":
                return operands[0] - operands[1]
            case "multiply":
                return operands[0] * operands[1]
            case "divide":
                return operands[0] / operands[1]
            case "negate":
                return -operands[0]
            case "power":
                return _power(operands[0], sympy.Integer(node.value))
            case function:
                return _function(function)(*operands)


class _Reader:
    """SymPy -> nodes. What is equal becomes one node."""

    def __init__(self, nodes: dict[_Expr, Node]) -> None:
        self._symbols = nodes
        self._nodes: dict[_Expr, Node] = {}

    def node(self, expression: _Expr) -> Node:
        if expression not in self._nodes:
            self._nodes[expression] = self._new(expression)
        return self._nodes[expression]

    def _new(self, expression: _Expr) -> Node:
        if expression.is_Symbol:
            node = self._symbols[expression]
            return node if node.type == "bool" else real(node)
        if expression.is_Add:
            return reduce(self._plus, expression.args, number(0.0))
        if expression.is_Function:
            return self._call(type(expression).__name__, expression.args)
        return self._product(expression)

    def _plus(self, total: Node, term: _Expr) -> Node:
        if total == number(0.0):
            return self.node(term)
        if term.could_extract_minus_sign():
            return _float("subtract", total, self.node(-term))
        return _float("add", total, self.node(term))

    def _call(self, name: str, arguments: tuple[_Expr, ...]) -> Node:
        match name:
            case "ln2":
                return number(math.log(2.0))
            case "power":
                return Node("power", "float", (self.node(arguments[0]),), int(arguments[1]))
            case "sign":
                x = self.node(arguments[0])
                return _by_order(
                    x, number(0.0), number(1.0), Node("negate", "float", (number(1.0),)), number(0.0)
                )
            case "share":  # that the larger one has of the gradient
                x, y = map(self.node, arguments)
                return _by_order(x, y, number(1.0), number(0.0), number(0.5))
            case "_Select":
                return _float("select", *map(self.node, arguments))
            case _:
                return _float(name, *map(self.node, arguments))

    def _product(self, expression: _Expr) -> Node:
        """A product of powers with integer exponents, as one fraction."""
        coefficient, rest = expression.as_coeff_Mul()
        if coefficient < 0:
            return _float("negate", self.node(-expression))
        above, below = [_number(coefficient.p)], [_number(coefficient.q)]
        for factor in sympy.Mul.make_args(rest):
            base, exponent = factor.as_base_exp()
            side = above if exponent > 0 else below
            side += [self.node(base)] * abs(int(exponent)) if base != 1 else []
        numerator, denominator = (_times(factors) for factors in (above, below))
        return numerator if denominator == number(1.0) else _float("divide", numerator, denominator)


def _float(operator: str, *operands: Node) -> Node:
    return Node(operator, "float", operands)


def _by_order(x: Node, y: Node, if_greater: Node, if_less: Node, if_equal: Node) -> Node:
    less, greater = Node("less", "bool", (x, y)), Node("less", "bool", (y, x))
    return _float("select", greater, if_greater, _float("select", less, if_less, if_equal))


def _number(value: int) -> Node:
    if value > MAX_FLOAT:
        raise OverflowError
    return number(float(value))


def _times(factors: list[Node]) -> Node:
    factors = [factor for factor in factors if factor != number(1.0)] or [number(1.0)]
    return reduce(lambda product, factor: _float("multiply", product, factor), factors)
