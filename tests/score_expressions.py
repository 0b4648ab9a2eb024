"""Random score expressions: the text of each, and what it means to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

Value = torch.Tensor


@dataclass(frozen=True)
class World:
    """What names mean at many points at once, and how inexact every operation on floats is."""

    names: dict[str, Value]
    values: dict[str, torch.Tensor | float]
    dtype: torch.dtype = torch.float64
    noise: float = 0.0

    def rounded(self, x: Value) -> Value:
        """A result with an error like that of arithmetic in another precision, or in another order."""
        return x * (1 + self.noise * torch.randn_like(x)) if self.noise else x

    def as_float(self, x: Value) -> Value:
        return x.to(self.dtype)


@dataclass(frozen=True)
class Expression:
    """A text, which is in brackets if it needs them, and its value."""

    text: str
    value: Callable[[World], Value]

    def __repr__(self) -> str:
        return self.text


VALUES: dict[str, torch.Tensor | float] = {
    "slopes": torch.tensor([0.5, -0.25, 1.5, 2.0]),
    "table": torch.arange(24, dtype=torch.float16).reshape(4, 6).div(7).t(),
    "places": torch.tensor([3, -1, 40, 7, 0, 2], dtype=torch.int32),
    "document": torch.arange(60).reshape(3, 20).div(7, rounding_mode="floor"),
    "shown": torch.arange(7 * 2 * 3 * 5).reshape(7, 2, 3, 5).remainder(3).eq(0)[1::2],
    "half": torch.linspace(-2, 2, 9, dtype=torch.bfloat16),
    "window": 5,
    "cap": 3.5,
    "is_causal": True,
}
"""Tensors of every kind of memory: transposed, with holes, of rank 1 to 4."""


def _element(name: str, *indices: Expression) -> Expression:
    def value(world: World) -> Value:
        array = world.values[name]
        places = [i.value(world).clamp(0, size - 1) for i, size in zip(indices, array.shape, strict=True)]
        element = array[tuple(places)]
        if element.dtype == torch.bool:
            return element
        return world.as_float(element) if element.is_floating_point() else element.long()

    return Expression(f"{name}[{', '.join(index.text for index in indices)}]", value)


def _name(name: str) -> Expression:
    return Expression(name, lambda world: world.names[name])


def _scalar(name: str) -> Expression:
    return Expression(
        name, lambda world: torch.tensor(VALUES[name]).to(world.dtype if name == "cap" else None)
    )


def _literal(number: float) -> Expression:
    return Expression(repr(number) if number >= 0 else f"({number})", lambda world: torch.tensor(number))


def _exactly(
    template: str, function: Callable[..., Value], *operands: st.SearchStrategy
) -> st.SearchStrategy:
    def build(*operands: Expression) -> Expression:
        return Expression(
            template.format(*operands),
            lambda world: function(*(operand.value(world) for operand in operands)),
        )

    return st.builds(build, *operands)


def _rounding(
    template: str, function: Callable[..., Value], *operands: st.SearchStrategy
) -> st.SearchStrategy:
    """`function` of floats."""

    def build(*operands: Expression) -> Expression:
        def value(world: World) -> Value:
            return world.rounded(function(*(world.as_float(operand.value(world)) for operand in operands)))

        return Expression(template.format(*operands), value)

    return st.builds(build, *operands)


def _element_of(name: str, *indices: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(lambda *indices: _element(name, *indices), *indices)


def _floor_divide(a: Value, b: Value) -> Value:
    return torch.div(a, b, rounding_mode="floor")


def _is_between(a: Value, b: Value, c: Value) -> Value:
    return (a < b) & (b <= c)


COMPARISONS = {"<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne}
FUNCTIONS = {
    name: getattr(torch, name)
    for name in ("exp", "exp2", "log", "log2", "sqrt", "tanh", "sigmoid", "sin", "cos", "abs")
}


@st.composite
def integers(draw: st.DrawFn, depth: int) -> Expression:
    coordinates = [_name(name) for name in ("b", "h", "q", "kv", "q_len", "kv_len")]
    leaf = st.sampled_from([*coordinates, _scalar("window"), _literal(0), _literal(7), _literal(-3)])
    if depth == 0:
        return draw(leaf)
    a, b = integers(depth - 1), integers(depth - 1)
    divisor = st.sampled_from([_literal(3), _literal(-4), _literal(1), _scalar("window")])
    return draw(
        st.one_of(
            leaf,
            _exactly("({} + {})", torch.add, a, b),
            _exactly("({} - {})", torch.sub, a, b),
            _exactly("({} * {})", torch.mul, leaf, leaf),
            _exactly("({} // {})", _floor_divide, a, divisor),
            _exactly("({} % {})", torch.remainder, a, divisor),
            _exactly("(-{})", torch.neg, a),
            _exactly("abs({})", torch.abs, a),
            _exactly("({} ** 3)", lambda x: x * x * x, leaf),
            _exactly("min({}, {})", torch.minimum, a, b),
            _exactly("max({}, {}, 2)", lambda x, y: torch.maximum(x, y).clamp(min=2), a, b),
            _exactly("({1} if {0} else {2})", torch.where, booleans(depth - 1), a, b),
            _element_of("places", a),
            _element_of("document", a, b),
        )
    )


@st.composite
def booleans(draw: st.DrawFn, depth: int, of_score: bool = False) -> Expression:
    """`of_score`: the score may be compared with a number, which rounding does not touch."""
    a, b = integers(max(depth - 1, 0)), integers(max(depth - 1, 0))
    comparisons = [_exactly(f"({{}} {sign} {{}})", compare, a, b) for sign, compare in COMPARISONS.items()]
    if of_score:
        limits = st.sampled_from([_literal(0), _literal(1.25), _literal(-2.5)])
        comparisons.append(_exactly("({} < {})", torch.lt, st.just(_name("score")), limits))
    if depth == 0:
        return draw(st.one_of(*comparisons, st.just(_scalar("is_causal"))))
    x, y = booleans(depth - 1, of_score), booleans(depth - 1, of_score)
    return draw(
        st.one_of(
            *comparisons,
            _exactly("({} < {} <= {})", _is_between, a, b, a),
            _exactly("({} and {})", torch.logical_and, x, y),
            _exactly("({} or {})", torch.logical_or, x, y),
            _exactly("(not {})", torch.logical_not, x),
            _exactly("({} == {})", torch.eq, x, y),
            _exactly("where({}, {}, {})", torch.where, x, y, x),
            _element_of("shown", a, b, a, b),
        )
    )


@st.composite
def floats(draw: st.DrawFn, depth: int) -> Expression:
    """Where a function jumps, its operands are exact."""
    elements = [
        _element("slopes", _name("h")),
        _element("half", _name("b")),
        _element("table", _name("kv"), _name("q")),
    ]
    numbers = [_scalar("cap"), _literal(0.75), _literal(2), _literal(-1.5)]
    leaf = st.sampled_from([*[_name("score")] * 4, *elements, *numbers])
    if depth == 0:
        return draw(leaf)
    a, b = floats(depth - 1), floats(depth - 1)
    return draw(
        st.one_of(
            *(_rounding(f"{name}({{}})", function, a) for name, function in FUNCTIONS.items()),
            _rounding("({} + {})", torch.add, a, b),
            _rounding("({} - {})", torch.sub, a, b),
            _rounding("({} * {})", torch.mul, a, b),
            _rounding("({} * {})", torch.mul, a, integers(depth - 1)),
            _rounding("({} / {})", torch.div, a, b),
            _rounding("(-{})", torch.neg, a),
            _rounding("({} ** 3)", lambda x: x * x * x, a),
            _rounding("({} ** -2)", lambda x: 1 / (x * x), a),
            _rounding("floor({})", torch.floor, leaf),
            _rounding("min({}, {})", torch.minimum, a, leaf),
            _rounding("max({}, {})", torch.maximum, leaf, a),
            _exactly("where({}, {}, {})", torch.where, booleans(1, True), a, b),
        )
    )
