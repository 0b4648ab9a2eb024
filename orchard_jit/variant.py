"""What a compiled kernel *is*."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

BACKENDS = ("cpu", "metal")
KERNELS = ("forward", "backward", "decode")
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}
FEATURES = {
    "causal": "the keys that a query sees end at its place on the diagonal",
    "window": "they begin and end at a distance from it",
    "mask": "a boolean tensor hides keys",
    "bias": "a tensor in the inputs' dtype is added to the scores",
    "bias_f32": "a float32 tensor is added to the scores",
    "bias_grad": "the backward gives the gradient of the bias too",
    "sinks": "each head has a logit that takes weight and gives no value",
    "dropout": "weights are dropped at random",
    "varlen": "sequences are packed one after the other",
    "lengths": "each sequence has a number of keys of its own",
}
"""What can be compiled in beyond plain attention."""

_FEATURES_OF = {
    "forward": FEATURES.keys() - {"bias_grad"},
    "backward": FEATURES.keys() - {"sinks"},  # the log-sum-exp tells the backward all about them
    "decode": {"causal", "window", "sinks", "lengths"},
}
MAX_HEAD_DIM = 512


@dataclass(frozen=True, slots=True)
class Variant:
    """One compiled kernel. It travels from the call to the cache, and is all that a template sees.

    Sequence lengths, batch, heads, strides and scale are values of a call and not in here, so a new
    length never compiles anything.

    Attributes:
        backend: "cpu" or "metal".
        arch: The processor it is compiled for: an instruction set ("x86-64-v4") or a GPU family ("apple9").
        kernel: "forward", "backward", or "decode": a forward for few queries and many keys.
        dtype: "float32", "float16", "bfloat16" or "float64".
        head_dim: Last dimension of query and key, 1 to 512.
        head_dim_v: Last dimension of value and of the output, 1 to 512.
        features: What is compiled in beyond plain attention, sorted; see `FEATURES`.
        blocks: Block sizes by name, sorted; what they mean is the kernel's.
        score: The user's expressions over scores, as `orchard_jit.score` writes them down; empty for none.

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
    score: str = ""

    def __post_init__(self) -> None:
        _require("backend", self.backend, BACKENDS)
        _require("kernel", self.kernel, KERNELS)
        _require("dtype", self.dtype, DTYPES)
        for feature in self.features:
            _require("features", feature, FEATURES)
            if not has_feature(self.kernel, feature):
                raise ValueError(f"a {self.kernel} kernel has no feature {feature!r}")
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
        score = (f"score{hashlib.sha256(self.score.encode()).hexdigest()[:8]}",) if self.score else ()
        return "-".join(
            (self.backend, self.arch, self.kernel, DTYPES[self.dtype], dims, *self.features, *score)
        )

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


def has_feature(kernel: str, feature: str) -> bool:
    """Whether a kernel can be compiled with the feature."""
    return feature in _FEATURES_OF[kernel]


def _require(name: str, value: str, accepted: Collection[str]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(accepted)}; got {value!r}")
