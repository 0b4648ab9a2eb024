"""From the options of the command line, or a table of a file of kernels, to variants."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchard_jit import backends
from orchard_jit.blocks.forced import written
from orchard_jit.commands.console import UsageError
from orchard_jit.selection import select
from orchard_jit.variant import DTYPES, Variant, has_feature


@dataclass(frozen=True)
class Grid:
    """Every combination of some values of a variant's fields; see `Variant`.

    Attributes:
        head_dim_v: Empty for the same as head_dim.
        dtype: Empty for all that the backend has.
        causal: Without it, with it, or both. A window has a right bound of its own and is never both.
        features: Of each combination, as far as its kernel has them.
        blocks: Sizes in place of those that would be chosen.
        arch: None for this machine's.

    """

    head_dim: Sequence[int]
    head_dim_v: Sequence[int] = ()
    dtype: Sequence[str] = ()
    causal: Sequence[bool] = (False, True)
    kernel: Sequence[str] = ("forward", "backward")
    features: Sequence[str] = ()
    score: str = ""
    blocks: Mapping[str, int] = field(default_factory=dict)
    backend: str = "cpu"
    arch: str | None = None

    def variants(self) -> Iterator[Variant]:
        """One for each combination.

        Raises:
            UsageError: There is no such variant; the message says what is accepted.

        """
        for head_dim, head_dim_v, dtype, causal, kernel in itertools.product(
            self.head_dim,
            self.head_dim_v or (None,),
            self.dtype or dtypes(self.backend),
            (False,) if "window" in self.features else self.causal,
            self.kernel,
        ):
            yield chosen(
                backend=self.backend,
                arch=self.arch,
                kernel=kernel,
                dtype=dtype,
                head_dim=head_dim,
                head_dim_v=head_dim_v,
                features=[*self.features, *(["causal"] if causal else [])],
                score=self.score,
                blocks=self.blocks,
            )


def chosen(
    *,
    backend: str,
    arch: str | None,
    kernel: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int | None,
    features: Collection[str],
    score: str,
    blocks: Mapping[str, int],
) -> Variant:
    """The variant that a call with these values would use, with those of the features that the kernel has.

    Raises:
        UsageError: There is no such variant; the message says what is accepted.

    """
    try:
        return select(
            backend=backend,
            arch=arch,
            kernel=kernel,
            dtype=dtype,
            head_dim=head_dim,
            head_dim_v=head_dim_v or head_dim,
            features=[feature for feature in features if has_feature(kernel, feature)],
            score=score,
            blocks=written(kernel, blocks) if blocks else "",
        )
    except (ValueError, NotImplementedError) as error:
        raise UsageError(str(error)) from None


def dtypes(backend: str) -> list[str]:
    """All dtypes that a backend has kernels for.

    Raises:
        UsageError: There is no such backend.

    """
    try:
        known = backends.get(backend).dtypes
    except ValueError as error:
        raise UsageError(str(error)) from None
    return [name for name in DTYPES if name in known]
