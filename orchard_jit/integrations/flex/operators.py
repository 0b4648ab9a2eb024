"""PyTorch's operators on scalars, in the language of score expressions.

Types are its int, float and bool: a float is what the kernel computes in, whatever PyTorch would round it to
on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from orchard_jit.integrations.flex.nodes import (
    alike,
    arithmetic,
    compare,
    conjunction,
    constant,
    counted,
    disjunction,
    negation,
    number,
    select,
)
from orchard_jit.integrations.flex.refusal import Refusal
from orchard_jit.score.expression import Node, real
from orchard_jit.score.parser import MAX_EXPONENT


def _float(a: Node) -> Node:
    """A float to compute with from here on; in `real(a) + real(b)` the ints would be added first."""
    a = counted(a)
    if a.type == "float" or a.operator == "number":
        return real(a)
    return Node("multiply", "float", (real(a), number(1.0)))


def _truth(a: Node) -> Node:
    return a if a.type == "bool" else compare("not_equal", a, number(0))


def _function(name: str) -> Callable[[Node], Node]:
    return lambda a: Node(name, "float", (real(counted(a)),))


def _inverse(a: Node) -> Node:
    return Node("divide", "float", (number(1.0), real(counted(a))))


def _negative(a: Node) -> Node:
    return Node("negate", a.type, (a,))


# By the names of PyTorch's operators, and with their arguments.


def _sum(operator: str) -> Callable[..., Node]:
    def rule(a: Node, b: Node, alpha: Node | None = None) -> Node:
        return arithmetic(operator, a, b if alpha is None else arithmetic("multiply", alpha, b))

    return rule


def _div(a: Node, b: Node, rounding_mode: str | None = None) -> Node:
    if rounding_mode == "floor":
        return _floor_divide(a, b)
    if rounding_mode is not None:
        raise Refusal(f"a division with rounding_mode={rounding_mode!r} is not accepted, only 'floor' is")
    return Node("divide", "float", (real(counted(a)), real(counted(b))))


def _floor_divide(a: Node, b: Node) -> Node:
    a, b = alike(counted(a), counted(b))
    return Node("floor_divide", "int", (a, b)) if a.type == "int" else _floor(_div(a, b))


def _remainder(a: Node, b: Node) -> Node:
    a, b = alike(counted(a), counted(b))
    if a.type == "int":
        return Node("modulo", "int", (a, b))
    return arithmetic("subtract", a, arithmetic("multiply", _floor_divide(a, b), b))


def _pow(base: Node, exponent: Node) -> Node:
    if exponent.operator == "number":
        power = _with_exponent(counted(base), constant(exponent))
        if power is not None:
            return power if exponent.type == "int" else _float(power)
    elif base.operator == "number" and constant(base) > 0 and "float" in (base.type, exponent.type):
        return _function("exp2")(arithmetic("multiply", exponent, number(math.log2(constant(base)))))
    raise Refusal(
        f"this power is not accepted; exponents may be 0.5 and integers up to {MAX_EXPONENT}, and positive "
        "numbers may have exponents that differ"
    )


def _with_exponent(base: Node, exponent: float) -> Node | None:
    size = abs(exponent)
    if size == 0.5:
        power = _function("sqrt")(base)
    elif size > MAX_EXPONENT or size % 1 or (exponent < 0 and base.type == "int"):
        return None
    elif size <= 1:
        power = base if size else number(1)
    else:
        power = Node("power", base.type, (base,), int(size))
    return power if exponent >= 0 else _inverse(power)


def _abs(a: Node) -> Node:
    return Node("abs", a.type, (a,))


def _sign(a: Node) -> Node:
    one, zero = (number(1.0), number(0.0)) if a.type == "float" else (number(1), number(0))
    return select(compare("less", zero, a), one, select(compare("less", a, zero), _negative(one), zero))


def _floor(a: Node) -> Node:
    return a if a.type == "int" else _function("floor")(a)


def _ceil(a: Node) -> Node:
    return a if a.type == "int" else _negative(_floor(_negative(a)))


def _clamp(a: Node, min: Node | None = None, max: Node | None = None) -> Node:  # noqa: A002  # PyTorch's names
    # Not by the functions min and max, which halve the gradient at a bound, where clamp lets it pass.
    if min is not None:
        a = select(compare("less", a, min), min, a)
    return a if max is None else select(compare("less", max, a), max, a)


def _relu(a: Node) -> Node:
    return select(compare("less_equal", a, number(0)), number(0), a)


def _masked_fill(a: Node, mask: Node, value: Node) -> Node:
    return select(mask, value, a)


def _bitwise(operator: Callable[..., Node]) -> Callable[..., Node]:
    def rule(*operands: Node) -> Node:
        if any(operand.type != "bool" for operand in operands):
            raise Refusal("& | ^ ~ are accepted of bools, not of integers")
        return operator(*operands)

    return rule


def _logical(operator: Callable[..., Node]) -> Callable[..., Node]:
    return lambda *operands: operator(*map(_truth, operands))


def _exclusive(a: Node, b: Node) -> Node:
    return Node("not_equal", "bool", (a, b))


def _cast(a: Node, dtype: torch.dtype | None = None, **_: object) -> Node:
    if dtype is None:
        return a
    if dtype is torch.bool:
        return _truth(a)
    if dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        return _float(a)
    if dtype not in (torch.int32, torch.int64) and a.type != "bool":
        raise Refusal(f"a cast to {dtype} is not accepted; those to bool, int32, int64 and floats are")
    if a.type == "float":
        raise Refusal("a float cannot become an integer here; // and % of integers give integers")
    return counted(a)


def _detach(a: Node) -> Node:
    if a.uses_score:
        raise Refusal("the gradient of the score cannot be cut off by detach()")
    return a


def _by_operands(rule: Callable[..., Node], operator: str, *, swapped: bool = False) -> Callable[..., Node]:
    return (lambda a, b: rule(operator, b, a)) if swapped else (lambda a, b: rule(operator, a, b))


_FUNCTIONS = ("exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "sin", "cos")

OPERATORS: dict[str, Callable[..., Node]] = {
    "add": _sum("add"),
    "sub": _sum("subtract"),
    "rsub": _by_operands(arithmetic, "subtract", swapped=True),
    "mul": _by_operands(arithmetic, "multiply"),
    "minimum": _by_operands(arithmetic, "min"),
    "maximum": _by_operands(arithmetic, "max"),
    "div": _div,
    "floor_divide": _floor_divide,
    "remainder": _remainder,
    "reciprocal": _inverse,
    "pow": _pow,
    "neg": _negative,
    "abs": _abs,
    "sign": _sign,
    "floor": _floor,
    "ceil": _ceil,
    "rsqrt": lambda a: _inverse(_function("sqrt")(a)),
    "silu": lambda a: arithmetic("multiply", a, _function("sigmoid")(a)),
    **{name: _function(name) for name in _FUNCTIONS},
    "clamp": _clamp,
    "clamp_min": lambda a, bound: _clamp(a, min=bound),
    "clamp_max": lambda a, bound: _clamp(a, max=bound),
    "relu": _relu,
    "where": select,
    "masked_fill": _masked_fill,
    "eq": _by_operands(compare, "equal"),
    "ne": _by_operands(compare, "not_equal"),
    "lt": _by_operands(compare, "less"),
    "le": _by_operands(compare, "less_equal"),
    "gt": _by_operands(compare, "less", swapped=True),
    "ge": _by_operands(compare, "less_equal", swapped=True),
    "bitwise_and": _bitwise(conjunction),
    "bitwise_or": _bitwise(disjunction),
    "bitwise_xor": _bitwise(_exclusive),
    "bitwise_not": _bitwise(negation),
    "logical_and": _logical(conjunction),
    "logical_or": _logical(disjunction),
    "logical_xor": _logical(_exclusive),
    "logical_not": _logical(negation),
    "_to_copy": _cast,
    "clone": lambda a, **_: a,
    "detach": _detach,
}
"""What becomes of each of PyTorch's operators."""
