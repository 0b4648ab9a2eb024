"""`ScoreMod`: a user's score function and mask, and the ones that everybody needs."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from functools import lru_cache

import torch

from orchard_jit import dynamo
from orchard_jit.score.expression import COORDINATES, FUNCTIONS, SCORE, SCORE_NODE, Type
from orchard_jit.score.parser import truth
from orchard_jit.score.spec import ArrayType, Spec, Stage, symbols_of

MAX_INTEGER_SCALAR = 2**24
"""Metal kernels get scalars as floats, which hold integers up to here exactly."""

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset((SCORE, "mask", "derivative", *COORDINATES, *FUNCTIONS, *keyword.kwlist))


@dataclass(frozen=True, init=False, repr=False, eq=False)
class ScoreMod:
    """What becomes of each score before the softmax, and which keys are hidden: compiled into the kernels.

    `score` and `mask` are expressions in Python's syntax over

    - `score`: scale * <query, key>, a float (not in a mask)
    - `b`, `h`, `q`, `kv`: the batch, the query head, and the places of query and key in their sequences
    - `q_len`, `kv_len`: the lengths of the sequences
    - the keyword arguments: tensors, which are indexed, and numbers

    made of numbers, + - * / // % **, comparisons, `and`, `or`, `not`, `a if c else b`, and the functions abs,
    min, max, where(c, a, b), exp, exp2, log, log2, sqrt, tanh, sigmoid, sin, cos, floor.

        ScoreMod("score + slope[h] * (kv - q)", slope=slopes)
        ScoreMod("cap * tanh(score / cap)", cap=50.0)
        ScoreMod(mask="0 <= q - kv <= window", window=128)
        ScoreMod(mask="document[b, q] == document[b, kv]", document=ids)

    Types are int, float and bool. / gives a float; // and % take ints and round down, where x // 0 is 0 and
    x % 0 is x; an exponent is an integer literal; ints and floats mix, bools do not. min and max give NaN if
    either is NaN. ints have 32 bits and wrap around; floats are float32. Where the inputs are float64, so are
    floats, and ints have 64 bits.

    An index outside of its tensor, a negative one too, reads the nearest element inside. Both sides of a
    condition are evaluated.

    The gradient follows the derivative with respect to the score, which is derived, or given as `derivative`.
    At kinks it is PyTorch's: 0 for abs at 0, half of each side for min and max of equals, 0 for floor.

    Another number of the same type, or another tensor of the same dtype and rank, never compiles anything.

    Attributes:
        spec: The checked expressions as canonical JSON, with positions instead of names: what is compiled.
            Empty if scores stay as they are.
        arrays: The tensors, by position.
        scalars: The numbers, by position.

    """

    spec: str
    arrays: tuple[torch.Tensor, ...]
    scalars: tuple[float, ...]

    def __init__(
        self,
        score: str = SCORE,
        *,
        mask: str | None = None,
        derivative: str | None = None,
        **values: torch.Tensor | float,
    ) -> None:
        """Check the expressions.

        Args:
            score: An expression of a number.
            mask: An expression of a bool: does the query see the key?
            derivative: That of `score` with respect to the score, if it is not to be derived.
            **values: What other names mean: tensors of 1 to 4 dimensions, and ints up to 2^24, floats and
                bools; 8 of either at most. Tensors are float32, float16, bfloat16, float64 (CPU), int32,
                int64 or bool, and are read in place at each call. Those of int64 must hold values of 32 bits;
                to look, we wait for the device, which int32 spares.

        Raises:
            ValueError, TypeError: The message quotes the place in the expression, and says what is accepted.

        """
        kinds = tuple((name, _kind_of(name, value)) for name, value in values.items())
        for what, text in (("score", score), ("mask", mask), ("derivative", derivative)):
            if not isinstance(text, str) and (what == "score" or text is not None):
                raise TypeError(f"{what} must be an expression in a str, got {type(text).__name__}")
        spec, used = _compile(score, mask, derivative, kinds)
        used_values = [values[name] for name in used]
        self._set(
            spec,
            tuple(value for value in used_values if isinstance(value, torch.Tensor)),
            tuple(float(value) for value in used_values if not isinstance(value, torch.Tensor)),
        )

    def then(self, other: ScoreMod) -> ScoreMod:
        """`other` after this: its score is the value of this one's, and what either hides is hidden.

        Raises:
            ValueError: Together they have more than 8 tensors, 8 numbers or 8 functions.

        """
        if not isinstance(other, ScoreMod):
            raise TypeError(f"then takes a ScoreMod, got {type(other).__name__}")
        composed = ScoreMod.__new__(ScoreMod)
        spec = _compose(self.spec, other.spec)
        composed._set(spec, (*self.arrays, *other.arrays), (*self.scalars, *other.scalars))
        return composed

    @property
    def requires_grad(self) -> bool:
        """Does a tensor want a gradient? It gets none: kernels differentiate with respect to scores alone."""
        return any(array.requires_grad for array in self.arrays)

    def __repr__(self) -> str:
        arrays = ", ".join(f"array{i}: {list(array.shape)}" for i, array in enumerate(self.arrays))
        return f"ScoreMod({self.spec or 'score'}{', ' if arrays else ''}{arrays})"

    def _set(self, spec: str, arrays: tuple[torch.Tensor, ...], scalars: tuple[float, ...]) -> None:
        for name, value in (("spec", spec), ("arrays", arrays), ("scalars", scalars)):
            object.__setattr__(self, name, value)


def softcap(cap: float) -> ScoreMod:
    """Scores stay between -cap and cap, as in Gemma 2 and flash-attn: cap * tanh(score / cap)."""
    if not cap > 0:
        raise ValueError(f"cap must be positive, got {cap}")
    return ScoreMod("cap * tanh(score / cap)", cap=float(cap))


def alibi(slopes: torch.Tensor, *, lower_right: bool = True) -> ScoreMod:
    """ALiBi (Press et al., arXiv:2108.12409): scores fall with the distance from the diagonal.

    Args:
        slopes: (heads) or (batch, heads).
        lower_right: The diagonal ends at the last query and the last key, as in flash-attn; else it begins at
            the first ones.

    """
    if slopes.dim() not in (1, 2):
        raise ValueError(f"slopes must be (heads) or (batch, heads), got {tuple(slopes.shape)}")
    slope = "slopes[h]" if slopes.dim() == 1 else "slopes[b, h]"
    place = "q + kv_len - q_len" if lower_right else "q"
    return ScoreMod(f"score - {slope} * abs({place} - kv)", slopes=slopes)


_Kind = tuple[str, int] | Type
"""Of a tensor, dtype and rank; of a number, its type."""


@dynamo.constant
def _compose(first: str, second: str) -> str:
    return _composed(first, second)


@dynamo.constant
def _compile(
    score: str, mask: str | None, derivative: str | None, kinds: tuple[tuple[str, _Kind], ...]
) -> tuple[str, tuple[str, ...]]:
    return _compiled(score, mask, derivative, kinds)


@lru_cache(maxsize=256)
def _composed(first: str, second: str) -> str:
    return str(Spec.read(first).then(Spec.read(second)))


@lru_cache(maxsize=256)
def _compiled(
    score: str, mask: str | None, derivative: str | None, kinds: tuple[tuple[str, _Kind], ...]
) -> tuple[str, tuple[str, ...]]:
    """The spec, and the names in the order of their positions: those of arrays, and those of scalars."""
    words = _WORD.findall(" ".join(filter(None, (score, mask, derivative))))
    kind_of = dict(kinds)
    # Positions in the order of the text: that of the keyword arguments makes no difference.
    names = sorted(kind_of, key=lambda name: words.index(name) if name in words else len(words))
    arrays = {name: ArrayType(*kind) for name in names if isinstance(kind := kind_of[name], tuple)}
    scalars = {name: kind for name in names if not isinstance(kind := kind_of[name], tuple)}
    symbols = symbols_of(arrays, scalars)
    stage = Stage.read(score, derivative, symbols)
    spec = Spec(
        () if stage == Stage(SCORE_NODE) else (stage,),
        None if mask is None else truth("mask", mask, symbols),
        tuple(arrays.values()),
        tuple(scalars.values()),
    )
    unused = [name for name in kind_of if name not in words]
    if unused:  # only now: the error of a misspelt name says more
        raise ValueError(f"{', '.join(unused)} does not occur in the expressions")
    return str(spec), (*arrays, *scalars)


def _kind_of(name: str, value: object) -> _Kind:
    """What the kernels have to know of it."""
    if not name.isascii() or not name.isidentifier() or name in _RESERVED:
        raise ValueError(
            f"{name!r} cannot name a value: it must be an ASCII identifier with no meaning of its own"
        )
    if isinstance(value, torch.Tensor):
        return _array_type(name, value)
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER_SCALAR:
            raise ValueError(
                f"{name} must be an int from -{MAX_INTEGER_SCALAR} to {MAX_INTEGER_SCALAR}, got {value}"
            )
        return "int"
    if isinstance(value, float):
        return "float"
    raise TypeError(f"{name} must be a tensor or a number, got {type(value).__name__}")


def _array_type(name: str, tensor: torch.Tensor) -> tuple[str, int]:
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        raise ValueError(f"{name} must be a dense tensor that has elements, got {tuple(tensor.shape)}")
    has_values = not tensor.is_meta and not torch.compiler.is_compiling()
    if tensor.dtype is torch.int64 and has_values and (tensor != tensor.int()).any():
        raise ValueError(f"{name} holds values beyond 32 bits, which the kernels cannot hold")
    try:
        array = ArrayType(str(tensor.dtype).removeprefix("torch."), tensor.dim())
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from None
    return array.dtype, array.rank
