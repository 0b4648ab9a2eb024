"""From what functions compute to the arguments of `flash_attention` that mean the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch

from orchard_jit.integrations.flex.arrays import Arrays
from orchard_jit.integrations.flex.nodes import FALSE, TRUE, conjunction, constant, negation, number
from orchard_jit.options import Options
from orchard_jit.score import ScoreMod
from orchard_jit.score.expression import Node, text_of
from orchard_jit.score.mod import MAX_INTEGER_SCALAR
from orchard_jit.score.spec import MAX_SCALARS

_PLANE = ("b", "h", "q", "kv")
_SPELT_OUT = (0, 1, 2)
"""Numbers that belong to a formula. Others are inputs, so that another one compiles nothing."""


def options(score: Node, mask: Node, arrays: Arrays, shape: tuple[int, ...]) -> Options:
    """What kernels have of their own is no expression: a window, whose blocks they skip, and a bias.

    Args:
        score: What becomes of the score.
        mask: Whether the query sees the key.
        arrays: What both index.
        shape: Of the scores.

    """
    score, shown = _without_hidden(score)
    score, bias = _without_bias(score, arrays, shape)
    _refuse_gradients(score, arrays)
    window, mask = _without_window(conjunction(mask, shown))
    values = _Values(arrays)
    texts = {"score": text_of(values.bound(score))}
    if mask != TRUE:
        texts["mask"] = text_of(values.bound(mask))
    try:
        mod = ScoreMod(**texts, **values.by_name)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"flex_attention: {error}") from None
    return {"score_mod": mod, "bias": bias, "window": window, "alignment": "upper_left"}


def _without_hidden(score: Node) -> tuple[Node, Node]:
    """where(shown, score, -inf) as score and mask."""
    shown = TRUE
    while score.operator == "select" and not score.operands[0].uses_score:
        condition, one, other = score.operands
        if other == _HIDDEN:
            score, shown = one, conjunction(shown, condition)
        elif one == _HIDDEN:
            score, shown = other, conjunction(shown, negation(condition))
        else:
            break
    return (number(0.0), FALSE) if score == _HIDDEN else (score, shown)


_HIDDEN = number(-math.inf)


# A bias that is learned: kernels have gradients of it, but of nothing else that a score function reads.


def _without_bias(score: Node, arrays: Arrays, shape: tuple[int, ...]) -> tuple[Node, torch.Tensor | None]:
    """The score, and what is added to it as bias[h, q, kv] is, for one."""
    for term in _terms(score):
        if term.operator != "element" or term.value not in arrays.learned or term == score:
            continue
        places = [index.value for index in term.operands if index.operator == "name"]
        if len(set(places)) == len(term.operands):
            tensor = arrays.tensors[int(term.value)]
            plane = tensor.permute([places.index(name) for name in _PLANE if name in places])
            sizes = zip(_PLANE, shape, strict=True)
            bias = plane[tuple(slice(size) if name in places else None for name, size in sizes)]
            return _without_term(score, term), bias
    return score, None


def _terms(node: Node) -> Iterator[Node]:
    if node.operator == "add":
        for operand in node.operands:
            yield from _terms(operand)
    else:
        yield node


def _without_term(total: Node, term: Node) -> Node:
    one, other = total.operands
    if term in (one, other):
        return other if term == one else one
    if term in _terms(one):
        return replace(total, operands=(_without_term(one, term), other))
    return replace(total, operands=(one, _without_term(other, term)))


def _refuse_gradients(node: Node, arrays: Arrays) -> None:
    """There is none through a condition, so none is lost there."""
    if node.operator == "element" and node.value in arrays.learned:
        raise NotImplementedError(
            "flex_attention: a tensor that requires a gradient gets one only as a bias that is added to "
            "the score, indexed by b, h, q_idx and kv_idx, each once at most, as bias[h, q_idx, kv_idx]\n"
            f"    {arrays.learned[int(node.value)]}\n"
            "Any other bias can be computed beforehand, for orchard_jit.flash_attention(..., bias=bias); "
            "detach() says that no gradient is wanted"
        )
    for operand in node.operands:
        if operand.type != "bool":
            _refuse_gradients(operand, arrays)


# A window.


def _without_window(mask: Node) -> tuple[tuple[int | None, int | None] | None, Node]:
    """The tightest window that the mask implies, and what the mask says beside it."""
    lefts: list[int] = []
    rights: list[int] = []
    rest = TRUE
    for condition in _conditions(mask):
        bounds = _bounds(condition)
        for bound, side in zip(bounds, (lefts, rights), strict=True):
            side += [] if bound is None else [max(bound, 0)]
        if bounds == (None, None) or min(bound for bound in bounds if bound is not None) < 0:
            rest = conjunction(rest, condition)
    window = (min(lefts, default=None), min(rights, default=None))
    return None if window == (None, None) else window, rest


def _conditions(mask: Node) -> Iterator[Node]:
    if mask.operator == "conjunction":
        for operand in mask.operands:
            yield from _conditions(operand)
    else:
        yield mask


def _bounds(condition: Node) -> tuple[int | None, int | None]:
    """(left, right) of a condition that is q - left <= kv, kv <= q + right, or both."""
    if condition.operator not in ("less", "less_equal") or condition.operands[0].type != "int":
        return None, None
    smaller, larger = condition.operands
    if smaller.operator == "abs":
        opposite = Node("negate", "int", smaller.operands)
        one, other = (
            _bounds(replace(condition, operands=(side, larger))) for side in (*smaller.operands, opposite)
        )
        return (one[0], other[1]) if one[1] is None else (other[0], one[1])
    excess = _linear(Node("subtract", "int", (smaller, larger)))  # at most 0
    if excess is None or excess.keys() - {_ONE} != {"q", "kv"} or {excess["q"], excess["kv"]} != {1, -1}:
        return None, None
    bound = -excess[_ONE] - (condition.operator == "less")
    return (None, bound) if excess["kv"] == 1 else (bound, None)


_ONE = "1"


def _linear(node: Node) -> Counter[str] | None:
    """The factors of coordinates in a sum, and what is added to them."""
    match node.operator, node.operands:
        case "number", _:
            return Counter({_ONE: int(constant(node))})
        case "name", _:
            return Counter({str(node.value): 1})
        case "negate", (operand,):
            terms = [(operand, -1)]
        case "add", (one, other):
            terms = [(one, 1), (other, 1)]
        case "subtract", (one, other):
            terms = [(one, 1), (other, -1)]
        case _:
            return None
    total: Counter[str] = Counter()
    for term, sign in terms:
        factors = _linear(term)
        if factors is None:
            return None
        for name, factor in factors.items():
            total[name] += sign * factor
    return Counter({name: factor for name, factor in total.items() if factor or name == _ONE})


class _Values:
    """The tensors and numbers of a score function, under the names that they have in its text."""

    def __init__(self, arrays: Arrays) -> None:
        self._arrays = arrays
        self._scalars: dict[Node, Node] = {}
        self.by_name: dict[str, torch.Tensor | float] = {}

    def bound(self, node: Node) -> Node:
        """The expression, of which the values are inputs."""
        if node.operator == "number":
            return self._number(node)
        if node.operator == "element":
            self.by_name[f"array{node.value}"] = self._arrays.tensors[int(node.value)].detach()
        return replace(node, operands=tuple(map(self.bound, node.operands)))

    def _number(self, node: Node) -> Node:
        value = constant(node)
        if node.type == "bool":
            return Node("equal", "bool", (number(0), number(int(not value))))
        if value in _SPELT_OUT:
            return node
        if node not in self._scalars:
            fits = node.type == "float" or abs(value) <= MAX_INTEGER_SCALAR
            if not fits or (len(self._scalars) == MAX_SCALARS and math.isfinite(value)):
                return number(value) if value > 0 else Node("negate", node.type, (number(-value),))
            position = len(self._scalars)
            self._scalars[node] = Node("scalar", node.type, (), position)
            self.by_name[f"scalar{position}"] = value
        return self._scalars[node]
