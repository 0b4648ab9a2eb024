"""What of a score function is compiled, and how it is written down in a variant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from orchard_jit.score import parser
from orchard_jit.score.expression import Node, Type, text_of

MAX_ARRAYS = 8
MAX_SCALARS = 8
MAX_STAGES = 8
MAX_RANK = 4
ARRAY_TYPES: dict[str, Type] = {
    "float32": "float",
    "float16": "float",
    "bfloat16": "float",
    "float64": "float",
    "int32": "int",
    "int64": "int",
    "bool": "bool",
}
"""What the elements of an array are in expressions, by dtype."""
SCALAR_TYPES: tuple[Type, ...] = ("int", "float", "bool")


@dataclass(frozen=True)
class ArrayType:
    """An array, but for its sizes."""

    dtype: str
    rank: int

    def __post_init__(self) -> None:
        if self.dtype not in ARRAY_TYPES:
            raise TypeError(f"a tensor must be {', '.join(ARRAY_TYPES)}; got {self.dtype}")
        if type(self.rank) is not int or not 1 <= self.rank <= MAX_RANK:
            raise ValueError(f"a tensor must have 1 to {MAX_RANK} dimensions, got {self.rank}")


@dataclass(frozen=True)
class Stage:
    """A function of the score; `derivative` is what the user says it is."""

    score: Node
    derivative: Node | None = None

    @classmethod
    def read(cls, score: str, derivative: str | None, symbols: parser.Symbols) -> Stage:
        """From texts."""
        return cls(
            parser.number_of("score", score, symbols),
            None if derivative is None else parser.number_of("derivative", derivative, symbols),
        )


@dataclass(frozen=True)
class Spec:
    """Stages, each a function of the score that the one before makes, a mask, and the types of all inputs."""

    stages: tuple[Stage, ...] = ()
    mask: Node | None = None
    arrays: tuple[ArrayType, ...] = ()
    scalars: tuple[Type, ...] = ()

    def __post_init__(self) -> None:
        for what, count, most in (
            ("tensors", len(self.arrays), MAX_ARRAYS),
            ("scalars", len(self.scalars), MAX_SCALARS),
            ("functions after one another", len(self.stages), MAX_STAGES),
        ):
            if count > most:
                raise ValueError(f"a score function has at most {most} {what}, this one has {count}")
        for scalar in self.scalars:
            if scalar not in SCALAR_TYPES:
                raise ValueError(f"a scalar must be {', '.join(SCALAR_TYPES)}; got {scalar!r}")
        if self.mask:
            parser.check_size("mask", self.mask)

    def then(self, other: Spec) -> Spec:
        """`other` applied to what this makes of the score; what either hides is hidden."""
        arrays, scalars = len(self.arrays), len(self.scalars)

        def moved(node: Node) -> Node:
            return node.renumbered(arrays, scalars)

        stages = (
            Stage(moved(stage.score), stage.derivative and moved(stage.derivative)) for stage in other.stages
        )
        masks = [mask for mask in (self.mask, other.mask and moved(other.mask)) if mask]
        return Spec(
            (*self.stages, *stages),
            Node("conjunction", "bool", tuple(masks)) if len(masks) == 2 else next(iter(masks), None),
            (*self.arrays, *other.arrays),
            (*self.scalars, *other.scalars),
        )

    def __str__(self) -> str:
        """Canonical JSON; empty if scores stay as they are."""
        if not self.stages and self.mask is None:
            return ""
        values = {
            "arrays": [[array.dtype, array.rank] for array in self.arrays],
            "mask": self.mask and text_of(self.mask),
            "scalars": list(self.scalars),
            "stages": [
                [text_of(stage.score), stage.derivative and text_of(stage.derivative)]
                for stage in self.stages
            ],
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":"))

    @classmethod
    @lru_cache(maxsize=64)
    def read(cls, text: str) -> Spec:
        """Inverse of `str`. It trusts nothing: the text may come from a file or a command line.

        Raises:
            ValueError: It is not what `str` writes.

        """
        if not text:
            return cls()
        try:
            spec = cls._read(text)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"not a score function as orchard_jit writes it down: {error}") from None
        if str(spec) != text:
            raise ValueError(f"not a score function as orchard_jit writes it down; that would be {spec}")
        return spec

    @classmethod
    def _read(cls, text: str) -> Spec:
        values = json.loads(text)
        arrays = tuple(ArrayType(dtype, rank) for dtype, rank in values["arrays"])
        scalars = tuple(values["scalars"])
        symbols = symbols_of(
            {f"array{i}": array for i, array in enumerate(arrays)},
            {f"scalar{i}": scalar for i, scalar in enumerate(scalars)},
        )
        stages = tuple(Stage.read(score, derivative, symbols) for score, derivative in values["stages"])
        mask = values["mask"]
        return cls(stages, mask if mask is None else parser.truth("mask", mask, symbols), arrays, scalars)


def symbols_of(arrays: Mapping[str, ArrayType], scalars: Mapping[str, Type]) -> parser.Symbols:
    """What the names of arrays and scalars mean, which are in the order of their positions."""
    return {
        **{
            name: parser.Array(position, ARRAY_TYPES[array.dtype], array.rank)
            for position, (name, array) in enumerate(arrays.items())
        },
        **{name: Node("scalar", type_, (), i) for i, (name, type_) in enumerate(scalars.items())},
    }
