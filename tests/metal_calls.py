"""Calls of Metal kernels: their tensors in memory as a test wants it, and what the results must be."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import reference
import torch

from orchard_jit.dropout import keep_mask
from orchard_jit.score import ScoreMod
from orchard_jit.variant import Variant

LOG2_E = 1 / np.log(2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}
SEED = 0x123456789ABCDEF0
DROPOUT = 0.25
THRESHOLD = int(DROPOUT * 2**32)
SCORE = ScoreMod(
    "gain * tanh(score) + table[h, kv % 5]",
    mask="(q + kv // 16) % 3 != 1",
    gain=1.5,
    table=torch.arange(20.0).view(4, 5) / 20,
)


@dataclass
class Plane:
    """A tensor in memory that ends with its last element; what lies between its rows is NaN."""

    memory: torch.Tensor
    tensor: torch.Tensor

    @classmethod
    def make(cls, shape, dtype, flavour, heads_inside=False) -> Plane:
        """Rows begin on 16 bytes, where `wide`, and lie apart. `heads_inside`: as (batch, rows, heads, d)."""
        _, heads, rows, dim = shape
        aligned = 16 // dtype.itemsize
        offset, row = (
            (aligned, (dim // aligned + 2) * aligned) if flavour == "wide" else (1, dim + 3 - dim % 2)
        )
        if heads_inside:
            strides = (heads * rows * row, row, heads * row, 1)
        else:
            strides = (heads * rows * row, rows * row, row, 1)
        return cls.strided(shape, strides, dtype, offset)

    @classmethod
    def strided(cls, shape, strides, dtype, offset=1) -> Plane:
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        blank = torch.nan if dtype.is_floating_point else 0
        memory = torch.full((offset + last + 1 if 0 not in shape else offset,), blank, dtype=dtype)
        return cls(memory, memory.as_strided(shape, strides, offset))

    def fill(self, values: torch.Tensor) -> Plane:
        self.tensor.copy_(values)
        return self

    @property
    def bytes(self) -> np.ndarray:
        return self.memory[self.tensor.storage_offset() :].view(torch.uint8).numpy()

    @property
    def strides(self) -> tuple[int, ...]:
        """0 where there is only one."""
        return tuple(
            0 if size == 1 else stride
            for size, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True)
        )

    def is_untouched_between_rows(self) -> bool:
        rest = self.memory.clone()
        rest.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset()).fill_(
            torch.nan
        )
        return bool(rest.isnan().all())


@dataclass(frozen=True)
class Shape:
    """The sizes of a call, and what its variant may ask for beside them.

    Attributes:
        left, right, lower_right: The bounds; `left` counts in a window alone.
        sequences: Queries and keys of each sequence that is packed.
        key_lengths: Keys of each batch.
        broadcast: Dimensions of mask and bias that are of size 1.

    """

    query_length: int
    key_length: int
    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    left: int = 5
    right: int = 0
    lower_right: bool = True
    sequences: tuple[tuple[int, int], ...] = ((5, 9), (0, 4), (18, 12), (3, 0), (21, 33))
    key_lengths: tuple[int, ...] = (13,)
    broadcast: tuple[int, ...] = ()


@dataclass
class Call:
    """The tensors of one call, of every result too, and what the results must be."""

    shape: Shape
    variant: Variant
    flavour: str
    planes: dict[str, Plane] = field(default_factory=dict)
    vectors: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dtype = getattr(torch, self.variant.dtype)
        self.scale = float(np.float32(self.variant.head_dim**-0.5))
        self.random = torch.Generator().manual_seed(0)
        self._make_tensors()
        self._make_optional_tensors()
        self._expect()

    def has(self, feature: str) -> bool:
        return feature in self.variant.features

    @property
    def batch(self) -> int:
        return len(self.shape.sequences) if self.has("varlen") else self.shape.batch

    @property
    def longest(self) -> tuple[int, int]:
        if self.has("varlen"):
            return tuple(max(lengths) for lengths in zip(*self.shape.sequences, strict=True))
        return self.shape.query_length, self.shape.key_length

    def _make_tensors(self) -> None:
        shape, dim, dim_v = self.shape, self.variant.head_dim, self.variant.head_dim_v
        rows = [shape.query_length, shape.key_length]
        if self.has("varlen"):
            rows = [sum(lengths) for lengths in zip(*shape.sequences, strict=True)]
        batch = 1 if self.has("varlen") else shape.batch
        of_queries, of_keys = (batch, shape.heads, rows[0]), (batch, shape.kv_heads, rows[1])
        sizes = {
            "query": (*of_queries, dim), "key": (*of_keys, dim), "value": (*of_keys, dim_v),
            "out": (*of_queries, dim_v), "grad_out": (*of_queries, dim_v),
        }  # fmt: skip
        sizes |= {f"grad_{name}": sizes[name] for name in ("query", "key", "value")}
        for number, (name, size) in enumerate(sizes.items()):
            self.planes[name] = Plane.make(size, self.dtype, self.flavour, heads_inside=number % 2 == 1)
        for name in ("query", "key", "value", "grad_out"):
            self.planes[name].fill(self._normal(sizes[name]))
        self.vectors["grad_lse"] = self._normal(of_queries)

    def _make_optional_tensors(self) -> None:
        shape = self.shape
        size = [shape.batch, shape.heads, shape.query_length, shape.key_length]
        size = [1 if dim in shape.broadcast else n for dim, n in enumerate(size)]
        _, h, q, k = size
        if self.has("mask"):  # keys outside of queries, and apart
            strides = (h * k * q * 2, k * q * 2, 2, q * 2)
            mask = torch.rand(size, generator=self.random) < 0.4
            mask[..., : q // 2, : k // 2] = False  # whole blocks
            self.planes["mask"] = Plane.strided(size, strides, torch.uint8).fill(mask)
        if self.has("bias") or self.has("bias_f32"):
            dtype = self.dtype if self.has("bias") else torch.float32
            strides = (h * q * (k + 3), q * (k + 3), k + 3, 1)
            self.planes["bias"] = Plane.strided(size, strides, dtype).fill(self._normal(size))
        if self.has("bias_grad"):
            self.planes["grad_bias"] = Plane.strided(size, (h * q * k, q * k, k, 1), dtype)
        self.vectors["seed"] = torch.tensor([SEED])
        self.vectors["array0"] = SCORE.arrays[0]
        self.vectors["sinks"] = self._normal(shape.heads)
        self.vectors["key_lengths"] = torch.tensor(shape.key_lengths, dtype=torch.int32)
        for name, lengths in zip(("query", "key"), zip(*shape.sequences, strict=True), strict=True):
            offsets = torch.tensor((0, *lengths)).cumsum(0).int()
            self.vectors[f"{name}_offsets"] = offsets

    def _normal(self, size) -> torch.Tensor:
        return torch.randn(size, generator=self.random)

    def _expect(self) -> None:
        names = [name for name in ("query", "key", "value", "bias") if name in self.planes]
        leaves = {name: self.planes[name].tensor.double().requires_grad_() for name in names}
        out, lse = self._packed(leaves) if self.has("varlen") else self._attention(leaves)
        lse = lse * LOG2_E
        with_keys = lse.isfinite()
        loss = (out * self.planes["grad_out"].tensor).sum()
        loss = loss + (lse * self.vectors["grad_lse"])[with_keys].sum()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        self.expected = {"out": out.detach(), "lse": lse.detach()}
        self.expected |= {f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}

    def _attention(self, leaves, sequence=0):
        shape = self.shape
        options = {}
        if self.has("causal") or self.has("window"):
            options["window"] = (shape.left if self.has("window") else None, shape.right)
            options["alignment"] = "lower_right" if shape.lower_right else "upper_left"
        if self.has("mask"):
            options["mask"] = self.planes["mask"].tensor != 0
        if self.has("sinks"):
            options["sinks"] = self.vectors["sinks"].double()
        if self.has("lengths"):
            options["key_lengths"] = self.vectors["key_lengths"].clamp(0, shape.key_length)
        if self.has("dropout"):
            batch, heads, queries = leaves["query"].shape[:3]
            size = (sequence + batch, heads, queries, leaves["key"].shape[2])
            options["keep"] = keep_mask(self.vectors["seed"], DROPOUT, *size)[sequence:]
            options["dropout_p"] = DROPOUT
        if "bias" in leaves:
            options["bias"] = leaves["bias"]
        if self.variant.score:
            table = SCORE.arrays[0].double()
            options["score"] = lambda s, b, h, q, kv: 1.5 * s.tanh() + table[h, kv % 5]
            options["visible"] = lambda b, h, q, kv: (q + kv // 16) % 3 != 1
        return reference.attention(
            leaves["query"], leaves["key"], leaves["value"], scale=self.scale, **options
        )

    def _packed(self, leaves):
        parts = []
        queries, keys = (self.vectors[f"{name}_offsets"].tolist() for name in ("query", "key"))
        for n in range(self.batch):
            of_queries, of_keys = slice(queries[n], queries[n + 1]), slice(keys[n], keys[n + 1])
            rows = {name: of_queries if name == "query" else of_keys for name in leaves}
            parts.append(
                self._attention({name: leaf[:, :, rows[name]] for name, leaf in leaves.items()}, sequence=n)
            )
        out, lse = zip(*parts, strict=True)
        return torch.cat(out, 2), torch.cat(lse, 2)

    @property
    def params(self) -> bytes:
        shape = self.shape
        numbers = [self.batch, shape.heads, shape.kv_heads, *self.longest]
        numbers += [shape.left, shape.right, shape.lower_right]
        rows = self.planes["query"].tensor.shape[2]
        for name in ("query", "key", "value", "out"):
            numbers += self._strides(name)
        numbers += [0 if self.has("varlen") else shape.heads * rows, rows, 1]
        for name in ("grad_out", "grad_query", "grad_key", "grad_value"):
            numbers += self._strides(name)
        for name in ("mask", "bias", "grad_bias"):
            numbers += self.planes[name].strides if name in self.planes else (0, 0, 0, 0)
        numbers += [THRESHOLD, *(4, 5, 1, 1), *(5, 1, 0, 0), *[0] * 56]  # and SCORE's table
        return struct.pack(f"{len(numbers)}q", *numbers)

    def _strides(self, name: str) -> tuple[int, ...]:
        batch, head, row, _ = self.planes[name].tensor.stride()
        return 0 if self.has("varlen") else batch, head, row

    @property
    def numbers(self) -> bytes:
        return struct.pack("10f", self.scale, 1 / (1 - DROPOUT), SCORE.scalars[0], *[0] * 7)

    @property
    def statistics(self) -> torch.Tensor:
        rows, sequences = self.planes["query"].tensor.shape[2], self.batch
        if self.has("varlen"):
            return torch.full((self.shape.heads, (rows + sequences) // 2 * 2, 2), torch.nan)
        return torch.full((sequences, self.shape.heads, (rows + 1) // 2 * 2, 2), torch.nan)


def wrong(call: Call, results: dict[str, torch.Tensor]) -> list[str]:
    """The results that differ from attention in float64, and the memory between rows that was written."""
    tolerance = TOLERANCE[call.dtype]
    found = [
        f"{name}, between rows"
        for name, plane in call.planes.items()
        if plane.memory.is_floating_point() and not plane.is_untouched_between_rows()
    ]
    for name, result in results.items():
        expected = call.expected[name]
        if name == "lse":
            right = torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-5)
        else:
            right = reference.error(result, expected) < (tolerance if name == "out" else 2 * tolerance)
        if not right:
            found.append(name)
    return found
