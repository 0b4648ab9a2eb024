"""From the options of the command line to variants."""

from __future__ import annotations

from orchard_jit import backends
from orchard_jit.commands.console import UsageError
from orchard_jit.selection import select
from orchard_jit.variant import DTYPES, Variant


def chosen(
    *,
    backend: str,
    arch: str | None,
    kernel: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int | None,
    causal: bool,
) -> Variant:
    """The variant that a call with these values would use.

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
            features=("causal",) if causal else (),
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
