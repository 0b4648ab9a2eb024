"""Checked expressions -> C++ and Metal. Both have one spelling: calls of templates/<backend>/expression.h."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from orchard_jit.score.expression import SCORE, SCORE_NODE, Node, number
from orchard_jit.score.spec import Spec


@dataclass(frozen=True)
class Dialect:
    """What differs between the languages."""

    arrays: dict[str, str]
    scalars: dict[str, str]
    float_suffix: str


DIALECTS = {
    "cpu": Dialect(
        arrays={
            "float32": "float",
            "float16": "expression::Float16",
            "bfloat16": "expression::Bfloat16",
            "float64": "double",
            "int32": "int32_t",
            "int64": "int64_t",
            "bool": "expression::Bool",
        },
        scalars={"int": "Integer", "float": "Real", "bool": "bool"},
        float_suffix="",
    ),
    "metal": Dialect(
        arrays={
            "float32": "float",
            "float16": "half",
            "bfloat16": "bfloat",
            "int32": "int",
            "int64": "long",
            "bool": "uchar",
        },
        scalars={"int": "int", "float": "float", "bool": "bool"},
        float_suffix="f",
    ),
}

_COORDINATES = {
    "b": "at.batch",
    "h": "at.head",
    "q": "at.query",
    "kv": "at.key",
    "q_len": "at.query_length",
    "kv_len": "at.key_length",
}
_INFIXES = {"add": ("+", 1), "subtract": ("-", 1), "multiply": ("*", 2), "divide": ("/", 2)}
"""Operators of floats, with their precedence; everything else is a call."""
_FACTOR, _SIGN, _ATOM = 2, 3, 4
_ONE = number(1.0)
_DEEPEST = 24
"""Compilers limit how deeply brackets may nest."""


@dataclass(frozen=True)
class Function:
    """The body of a function."""

    statements: tuple[str, ...]
    result: str


class Source:
    """What the templates see of a score function."""

    def __init__(self, spec: str, backend: str) -> None:
        """Of a variant for "cpu" or "metal".

        Raises:
            ValueError: The spec is damaged, or the backend has no such arrays.

        """
        self._spec = Spec.read(spec)
        self._dialect = DIALECTS[backend]
        missing = {array.dtype for array in self._spec.arrays} - set(self._dialect.arrays)
        if missing:
            accepted = ", ".join(self._dialect.arrays)
            raise ValueError(f"a score function on {backend} reads {accepted}; got {', '.join(missing)}")

    @property
    def arrays(self) -> list[str]:
        """The types of the elements."""
        return [self._dialect.arrays[array.dtype] for array in self._spec.arrays]

    @property
    def scalars(self) -> list[str]:
        """Their types."""
        return [self._dialect.scalars[scalar] for scalar in self._spec.scalars]

    @property
    def modifies(self) -> bool:
        """Does the score change?"""
        return bool(self._spec.stages)

    @property
    def masks(self) -> bool:
        """Are keys hidden?"""
        return self._spec.mask is not None

    @cached_property
    def modify(self) -> Function:
        """The score that the last stage makes of the first one's."""
        printer = _Printer(self._dialect)
        *scores, last = [stage.score for stage in self._spec.stages] or [SCORE_NODE]
        for score in scores:
            printer.next_stage(*printer.stage(score))
        return printer.function(*printer.stage(last))

    @cached_property
    def slope(self) -> Function:
        """The product of the stages' derivatives, each at the score that comes into the stage."""
        printer = _Printer(self._dialect)
        derivatives = [stage.derivative or _derivative(stage.score) for stage in self._spec.stages]
        last = max((i for i, node in enumerate(derivatives) if node.uses_score), default=0)
        factors = []
        for i, (stage, derivative) in enumerate(zip(self._spec.stages, derivatives, strict=True)):
            factor, *score = printer.stage(derivative, *([stage.score] if i < last else []))
            if derivative != _ONE:
                factors.append(factor)
            if score:
                printer.next_stage(*score)
        return printer.function(*(factors or printer.stage(_ONE)))

    @cached_property
    def visible(self) -> Function:
        """The mask."""
        if self._spec.mask is None:
            return Function((), "true")
        printer = _Printer(self._dialect)
        return printer.function(*printer.stage(self._spec.mask))


def _derivative(node: Node) -> Node:
    from orchard_jit.score.derivative import derivative  # SymPy takes a while, and only a backward needs it

    return derivative(node)


class _Text(NamedTuple):
    text: str
    precedence: int = _ATOM
    nesting: int = 0

    def within(self, least: int) -> str:
        """In brackets, if it binds less than `least`."""
        return self.text if self.precedence >= least else f"({self.text})"


class _Printer:
    """Prints expressions. What occurs more than once, or would nest too deeply, becomes a variable."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._statements: list[str] = []
        self._stage = 0
        self._values = 0
        self._uses: Counter[Node] = Counter()
        self._printed: dict[Node, _Text] = {}

    def stage(self, *nodes: Node) -> list[_Text]:
        """The expressions of one stage, all at once, so that they share what they have in common."""
        self._uses, self._printed = Counter(nodes), {}
        seen: set[Node] = set()
        waiting = list(nodes)
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                self._uses.update(node.operands)
                waiting += node.operands
        return [self._written(node) for node in nodes]

    def next_stage(self, score: _Text) -> None:
        """From here on the score is another one."""
        self._stage += 1
        self._statements.append(f"const auto {self._score} = {score.text};")

    def function(self, *factors: _Text) -> Function:
        """All that was printed, and a product."""
        least = _FACTOR if len(factors) > 1 else 0
        return Function(tuple(self._statements), " * ".join(factor.within(least) for factor in factors))

    @property
    def _score(self) -> str:
        return f"{SCORE}{self._stage or ''}"

    def _written(self, node: Node) -> _Text:
        if node not in self._printed:
            written = self._new(node)
            if node.operands and (self._uses[node] > 1 or written.nesting > _DEEPEST):
                name = f"value{self._values}"
                self._values += 1
                self._statements.append(f"const auto {name} = {written.text};")
                written = _Text(name)
            self._printed[node] = written
        return self._printed[node]

    def _new(self, node: Node) -> _Text:
        operator, operands, value = node.operator, node.operands, node.value
        nesting = 1 + max((self._written(operand).nesting for operand in operands), default=-1)
        if node.type == "float" and operator in _INFIXES:
            symbol, precedence = _INFIXES[operator]
            left, right = (self._written(operand) for operand in operands)
            text = f"{left.within(precedence)} {symbol} {right.within(precedence + 1)}"
            return _Text(text, precedence, nesting)
        if node.type == "float" and operator == "negate":
            return _Text(f"-{self._written(operands[0]).within(_ATOM)}", _SIGN, nesting)
        arguments = ", ".join(self._written(operand).text for operand in operands)
        match operator:
            case "number":
                suffix = self._dialect.float_suffix
                return _Text(f"Real({value!r}{suffix})" if node.type == "float" else f"Integer({value})")
            case "name":
                return _Text(self._score if node == SCORE_NODE else _COORDINATES[str(value)])
            case "scalar":
                return _Text(f"inputs.scalar{value}")
            case "element":
                return _Text(f"element(inputs.array{value}, {arguments})", nesting=nesting)
            case "power":
                return _Text(f"power<{value}>({arguments})", nesting=nesting)
            case function:
                return _Text(f"{function}({arguments})", nesting=nesting)
