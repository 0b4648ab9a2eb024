"""Which variant a call needs."""

from __future__ import annotations

from collections.abc import Sequence

from orchard_jit import backends
from orchard_jit.blocks import choose
from orchard_jit.variant import Variant


def select(
    *,
    backend: str,
    kernel: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int,
    features: Sequence[str] = (),
    score: str = "",
    blocks: str = "",
    arch: str | None = None,
) -> Variant:
    """The variant for a call on this machine, or on a given `arch`, in the block sizes that suit it.

    Args:
        backend, arch, kernel, dtype, head_dim, head_dim_v, features, score: As in `Variant`.
        blocks: What `specialize` forces.

    Raises:
        ValueError: A value is not an accepted one, or the variant does not fit the arch.
        BlocksError: A file of block sizes can't be used.

    """
    device = backends.get(backend)
    variant = Variant(
        backend=backend,
        arch=device.kernel_arch(arch or device.arch(), kernel, dtype),
        kernel=kernel,
        dtype=dtype,
        head_dim=head_dim,
        head_dim_v=head_dim_v,
        features=tuple(features),
        score=score,
    )
    if dtype not in device.dtypes:
        raise ValueError(
            f"the {backend} backend has kernels for {', '.join(sorted(device.dtypes))}; got {dtype}"
        )
    variant = variant.with_blocks(choose(variant, blocks))
    device.check(variant)
    return variant
