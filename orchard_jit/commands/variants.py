"""From the options of the command line to variants."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from orchard_jit import backends
from orchard_jit.blocks.forced import written
from orchard_jit.commands.console import UsageError
from orchard_jit.selection import select
from orchard_jit.variant import DTYPES, Variant, has_feature


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
