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
        return world.as_float(element) if element.is_floating_point() else element

    return Expression(f"{name}[{', '.join(index.text for index in indices)}]", value)


def _name(name: str) -> Expression:
    return Expression(name, lambda world: world.names[name])


def _scalar(name: str) -> Expression:
    return Expression(name, lambda world: torch.tensor(VALUES[name]).to(world.dtype if name == "cap" else None))


def _literal(number: float) -> Expression:
    if number < 0:
        return Expression(f"(-{-number!r})", lambda world: torch.tensor(number))
    return Expression(repr(number), lambda world: torch.tensor(number, dtype=world.dtype)
                      if isinstance(number, float) else torch.tensor(number))  # fmt: skip


def _apply(template: str, function: Callable[..., Value], *operands: Expression) -> Expression:
    """`function` of floats, which rounds."""

    def value(world: World) -> Value:
        return world.rounded(function(*(world.as_float(operand.value(world)) for operand in operands)))

    return Expression(template.format(*operands), value)


def _exact(template: str, function: Callable[..., Value], *operands: Expression) -> Expression:
    return Expression(
        template.format(*operands), lambda world: function(*(operand.value(world) for operand in operands))
    )


@st.composite
def integers(draw: st.DrawFn, depth: int) -> Expression:
    leaves = [_name(name) for name in ("b", "h", "q", "kv", "q_len", "kv_len")]
    leaf = st.sampled_from([*leaves, _scalar("window"), _literal(0), _literal(7), _literal(-3)])
    if depth == 0:
        return draw(leaf)
    a, b = integers(depth - 1), integers(depth - 1)
    divisor = st.sampled_from([_literal(3), _literal(-4), _literal(1), _scalar("window")])
    floor_divide = lambda x, y: torch.div(x, y, rounding_mode="floor")  # noqa: E731
    return draw(
        st.one_of(
            leaf,
            st.builds(lambda x, y: _exact("({} + {})", torch.add, x, y), a, b),
            st.builds(lambda x, y: _exact("({} - {})", torch.sub, x, y), a, b),
            st.builds(lambda x, y: _exact("({} * {})", torch.mul, x, y), leaf, leaf),
            st.builds(lambda x, y: _exact("({} // {})", floor_divide, x, y), a, divisor),
            st.builds(lambda x, y: _exact("({} % {})", torch.remainder, x, y), a, divisor),
            st.builds(lambda x: _exact("(-{})", torch.neg, x), a),
            st.builds(lambda x: _exact("abs({})", torch.abs, x), a),
            st.builds(lambda x: _exact("({} ** 3)", lambda v: v * v * v, x), leaf),
            st.builds(lambda x, y: _exact("min({}, {})", torch.minimum, x, y), a, b),
            st.builds(lambda x, y, z: _exact("max({}, {}, {})", lambda u, v, w: torch.maximum(torch.maximum(u, v), w),
                                             x, y, z), a, b, leaf),
            st.builds(lambda c, x, y: _exact("({1} if {0} else {2})", torch.where, c, x, y), booleans(depth - 1), a, b),
            st.builds(lambda x: _exact("{}", lambda v: v.long(), _element("places", x)), a),
            st.builds(lambda x, y: _element("document", x, y), a, b),
        )
    )  # fmt: skip


@st.composite
def booleans(draw: st.DrawFn, depth: int, of_score: bool = False) -> Expression:
    """`of_score`: the score may be compared with a number, which rounding does not touch."""
    a, b = integers(max(depth - 1, 0)), integers(max(depth - 1, 0))
    comparisons = [
        st.builds(lambda x, y, sign=sign, f=f: _exact(f"({{}} {sign} {{}})", f, x, y), a, b)
        for sign, f in {
            "<": torch.lt,
            "<=": torch.le,
            ">": torch.gt,
            ">=": torch.ge,
            "==": torch.eq,
            "!=": torch.ne,
        }.items()
    ]
    if of_score:
        limit = st.sampled_from([_literal(0), _literal(1.25), _literal(-2.5)])
        comparisons.append(
            st.builds(lambda x: _exact("({} < {})", torch.lt, _name("score"), x), limit)
        )
    if depth == 0:
        return draw(st.one_of(*comparisons, st.just(_scalar("is_causal"))))
    x, y = booleans(depth - 1, of_score), booleans(depth - 1, of_score)
    return draw(
        st.one_of(
            *comparisons,
            st.builds(lambda u, v, w: _exact("({} < {} <= {})", lambda r, s, t: (r < s) & (s <= t), u, v, w),
                      a, b, a),
            st.builds(lambda u, v: _exact("({} and {})", torch.logical_and, u, v), x, y),
            st.builds(lambda u, v: _exact("({} or {})", torch.logical_or, u, v), x, y),
            st.builds(lambda u: _exact("(not {})", torch.logical_not, u), x),
            st.builds(lambda u, v: _exact("({} == {})", torch.eq, u, v), x, y),
            st.builds(lambda c, u, v: _exact("where({}, {}, {})", torch.where, c, u, v), x, y, x),
            st.builds(lambda *i: _element("shown", *i), a, b, a, b),
        )
    )  # fmt: skip


@st.composite
def floats(draw: st.DrawFn, depth: int) -> Expression:
    """Smooth almost everywhere: what jumps or bends gets numbers that are exact."""
    leaf = st.sampled_from([
        *[_name("score")] * 4, _scalar("cap"), _literal(0.75), _literal(2), _literal(-1.5),
        _element("slopes", _name("h")), _element("half", _name("b")), _element("table", _name("kv"), _name("q")),
    ])  # fmt: skip
    if depth == 0:
        return draw(leaf)
    a, b = floats(depth - 1), floats(depth - 1)
    functions = {
        "exp": torch.exp, "exp2": torch.exp2, "log": torch.log, "log2": torch.log2, "sqrt": torch.sqrt,
        "tanh": torch.tanh, "sigmoid": torch.sigmoid, "sin": torch.sin, "cos": torch.cos,
    }  # fmt: skip
    return draw(
        st.one_of(
            *(st.builds(lambda x, n=name, f=f: _apply(f"{n}({{}})", f, x), a) for name, f in functions.items()),
            st.builds(lambda x, y: _apply("({} + {})", torch.add, x, y), a, b),
            st.builds(lambda x, y: _apply("({} - {})", torch.sub, x, y), a, b),
            st.builds(lambda x, y: _apply("({} * {})", torch.mul, x, y), a, b),
            st.builds(lambda x, y: _apply("({} * {})", torch.mul, x, y), a, integers(depth - 1)),
            st.builds(lambda x, y: _apply("({} / {})", torch.div, x, y), a, b),
            st.builds(lambda x: _apply("(-{})", torch.neg, x), a),
            st.builds(lambda x: _apply("({} ** 3)", lambda v: v * v * v, x), a),
            st.builds(lambda x: _apply("({} ** -2)", lambda v: 1 / (v * v), x), a),
            st.builds(lambda x: _apply("abs({})", torch.abs, x), a),
            st.builds(lambda x: _apply("floor({})", torch.floor, x), leaf),
            st.builds(lambda x, y: _apply("min({}, {})", torch.minimum, x, y), a, leaf),
            st.builds(lambda x, y: _apply("max({}, {})", torch.maximum, x, y), leaf, a),
            st.builds(lambda c, x, y: _exact("where({}, {}, {})", torch.where, c, x, y), booleans(1, True), a, b),
        )
    )  # fmt: skip
