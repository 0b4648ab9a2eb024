"""What a compiled kernel *is*."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

BACKENDS = ("cpu", "metal")
KERNELS = ("forward", "backward")
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
FEATURES = ("causal",)
MAX_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel. It travels from the call to the cache, and is all that a template sees.

    Sequence lengths, batch, heads, strides and scale are values of a call and not in here, so a new
    length never compiles anything.

    Attributes:
        backend: "cpu" or "metal".
        arch: The processor it is compiled for: an instruction set ("x86-64-v4") or a GPU family ("apple9").
        kernel: The pass, "forward" or "backward".
        dtype: "float32", "float16", "bfloat16" or "float64".
        head_dim: Last dimension of query and key, 1 to 512.
        head_dim_v: Last dimension of value and of the output, 1 to 512.
        features: What is compiled in beyond plain attention, sorted; see `FEATURES`.
        blocks: Block sizes by name, sorted; what they mean is the kernel's.

    Raises:
        ValueError: A field is not one of the values above; the message names it.

    """

    backend: str
    arch: str
    kernel: str
    dtype: str
    head_dim: int
    head_dim_v: int
    features: tuple[str, ...] = ()
    blocks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _require("backend", self.backend, BACKENDS)
        _require("kernel", self.kernel, KERNELS)
        _require("dtype", self.dtype, DTYPES)
        for feature in self.features:
            _require("features", feature, FEATURES)
        for name in ("head_dim", "head_dim_v"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_HEAD_DIM:
                raise ValueError(f"{name} must be an integer from 1 to {MAX_HEAD_DIM}, got {value!r}")
        for name, size in self.blocks:
            if type(size) is not int or size < 1:
                raise ValueError(f"block {name} must be a positive integer, got {size!r}")
        object.__setattr__(self, "features", tuple(sorted(set(self.features))))
        object.__setattr__(self, "blocks", tuple(sorted(dict(self.blocks).items())))

    @property
    def name(self) -> str:
        """Short, for people and files. It leaves the blocks out; `str` has them."""
        dims = (
            f"d{self.head_dim}" if self.head_dim == self.head_dim_v else f"d{self.head_dim}v{self.head_dim_v}"
        )
        return "-".join((self.backend, self.arch, self.kernel, DTYPES[self.dtype], dims, *self.features))

    def __str__(self) -> str:
        blocks = " ".join(f"{name}={size}" for name, size in self.blocks)
        return f"{self.name} [{blocks}]"

    def with_blocks(self, blocks: Mapping[str, int]) -> Variant:
        """The same kernel in other block sizes."""
        return replace(self, blocks=tuple(blocks.items()))

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` gives the variant back."""
        return {**asdict(self), "features": list(self.features), "blocks": dict(self.blocks)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Variant:
        """Inverse of `to_json`."""
        return cls(
            **{**values, "features": tuple(values["features"]), "blocks": tuple(values["blocks"].items())}
        )


def _require(name: str, value: str, accepted: Collection[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")
