"""A variant's Metal kernels without their host: compiled with every check, and launched as the host does."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field, replace

import numpy as np
import reference
import torch
from software_mac.metal import Library, compile_source

from orchard_jit import selection
from orchard_jit.jit import recipe
from orchard_jit.variant import Variant

LOG2_E = 1 / np.log(2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}


def select(kernel, dtype, head_dim, head_dim_v=None, causal=True, arch="apple9", blocks=None) -> Variant:
    """The variant that a call on a Mac needs; `blocks` in place of those of the table."""
    variant = selection.select(
        backend="metal",
        arch=arch,
        kernel=kernel,
        dtype=str(dtype).removeprefix("torch."),
        head_dim=head_dim,
        head_dim_v=head_dim_v or head_dim,
        features=("causal",) if causal else (),
    )
    return variant.with_blocks(blocks) if blocks else variant


def source_of(variant: Variant) -> str:
    files = recipe.for_variant(variant).files
    return next(files[name] for name in files if name.endswith(".metal"))


def only(flavour: str, source: str) -> str:
    """The source with its "wide" or its "narrow" kernels alone, which compiles in half the time."""
    other = {"wide": "narrow", "narrow": "wide"}[flavour]
    return re.sub(rf'^template \[\[host_name\("\w+_{other}"\).*\n', "", source, flags=re.MULTILINE)


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
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        memory = torch.full((offset + last + 1,), torch.nan, dtype=dtype)
        return cls(memory, memory.as_strided(shape, strides, offset))

    def fill(self, values: torch.Tensor) -> Plane:
        self.tensor.copy_(values)
        return self

    @property
    def bytes(self) -> np.ndarray:
        return self.memory[self.tensor.storage_offset() :].view(torch.uint8).numpy()

    @property
    def strides(self) -> tuple[int, ...]:
        return self.tensor.stride()[:3]

    def is_untouched_between_rows(self) -> bool:
        rest = self.memory.clone()
        rest.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset()).fill_(
            torch.nan
        )
        return bool(rest.isnan().all())


@dataclass(frozen=True)
class Shape:
    """The sizes of a call. `causal` is as the reference wants it; `diagonal`, where another says the same."""

    query_length: int
    key_length: int
    causal: str = "lower_right"
    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    diagonal: int | None = None

    def without_mask(self) -> Shape:
        return replace(self, causal="none")


@dataclass
class Call:
    """The tensors of one call, of every result too, and what the results must be."""

    shape: Shape
    variant: Variant
    flavour: str
    planes: dict[str, Plane] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, dim, dim_v = self.shape, self.variant.head_dim, self.variant.head_dim_v
        of_queries = (shape.batch, shape.heads, shape.query_length)
        of_keys = (shape.batch, shape.kv_heads, shape.key_length)
        self.dtype = getattr(torch, self.variant.dtype)
        self.scale = float(np.float32(dim**-0.5))
        sizes = {
            "query": (*of_queries, dim), "key": (*of_keys, dim), "value": (*of_keys, dim_v),
            "out": (*of_queries, dim_v), "grad_out": (*of_queries, dim_v),
        }  # fmt: skip
        sizes |= {f"grad_{name}": sizes[name] for name in ("query", "key", "value")}
        for number, (name, size) in enumerate(sizes.items()):
            self.planes[name] = Plane.make(size, self.dtype, self.flavour, heads_inside=number % 2 == 1)
        random = torch.Generator().manual_seed(0)
        for name in ("query", "key", "value", "grad_out"):
            self.planes[name].fill(torch.randn(sizes[name], generator=random))
        self.grad_lse = torch.randn(of_queries, generator=random)
        self._expect()

    def _expect(self) -> None:
        leaves = [self.planes[name].tensor.double().requires_grad_() for name in ("query", "key", "value")]
        out, lse = reference.attention(*leaves, causal=self.shape.causal, scale=self.scale)
        lse = lse * LOG2_E
        with_keys = lse.isfinite()
        loss = (out * self.planes["grad_out"].tensor).sum() + (lse * self.grad_lse)[with_keys].sum()
        grads = torch.autograd.grad(loss, leaves)
        self.expected = {"out": out.detach(), "lse": lse.detach()}
        self.expected |= dict(zip(("grad_query", "grad_key", "grad_value"), grads, strict=True))

    @property
    def params(self) -> bytes:
        shape = self.shape
        diagonal = shape.diagonal
        if diagonal is None:
            diagonal = {"lower_right": shape.key_length - shape.query_length}.get(shape.causal, 0)
        sizes = (shape.batch, shape.heads, shape.kv_heads, shape.query_length, shape.key_length, diagonal)
        names = ("query", "key", "value", "out", "grad_out", "grad_query", "grad_key", "grad_value")
        strides = [stride for name in names for stride in self.planes[name].strides]
        return struct.pack(f"{len(sizes) + len(strides)}q", *sizes, *strides)


class Kernels:
    """The kernels of a variant, from its own source or from a changed one."""

    def __init__(self, variant: Variant, flavour: str, source: str | None = None) -> None:
        self.variant = variant
        self.flavour = flavour
        text = only(flavour, source or source_of(variant))
        self.library = Library(compile_source(text, variant.kernel, checked=True))

    def run(self, call: Call, seed: int = 0) -> dict[str, torch.Tensor]:
        """The results of a call; they begin as NaN. A broken rule is a DispatchError."""
        return self._forward(call, seed) if self.variant.kernel == "forward" else self._backward(call, seed)

    def _forward(self, call: Call, seed: int) -> dict[str, torch.Tensor]:
        lse = torch.full_like(call.grad_lse, torch.nan)
        of = call.planes
        self._launch("forward", "", call, seed, of["query"], of["key"], of["value"], of["out"], lse)
        return {"out": of["out"].tensor.clone(), "lse": lse}

    def _backward(self, call: Call, seed: int) -> dict[str, torch.Tensor]:
        shape, of = call.shape, call.planes
        of["out"].fill(call.expected["out"])
        lse = call.expected["lse"].float()
        statistics = torch.full((shape.batch, shape.heads, (shape.query_length + 1) // 2 * 2, 2), torch.nan)
        self._launch("prepare", None, call, seed, of["out"], of["grad_out"], lse, statistics)
        self._launch("subtract_grad_lse", None, call, seed, call.grad_lse, statistics)
        inputs = (of["query"], of["key"], of["value"], of["grad_out"], statistics)
        self._launch("grad_query", "dq_", call, seed, *inputs, of["grad_query"])
        self._launch("grad_key_value", "dkv_", call, seed, *inputs, of["grad_key"], of["grad_value"])
        return {name: of[name].tensor.clone() for name in ("grad_query", "grad_key", "grad_value")}

    def _launch(self, name: str, prefix: str | None, call: Call, seed: int, *arguments) -> None:
        """`prefix`: of the kernel's blocks; a kernel without blocks takes no scale."""
        shape, blocks = call.shape, dict(self.variant.blocks)
        of_keys = name == "grad_key_value"
        length = shape.key_length if of_keys else shape.query_length
        buffers = [x.bytes if isinstance(x, Plane) else x.numpy() for x in arguments]
        buffers.append(call.params)
        if prefix is None:
            threads, rows = 128, {"prepare": 32, "subtract_grad_lse": 128}[name]
        else:
            simdgroups = blocks[prefix + "simdgroups"]
            threads, rows = 32 * simdgroups, simdgroups // blocks[prefix + "split"] * blocks[prefix + "rows"]
            buffers.append(np.float32(call.scale).tobytes())
        self.library.dispatch(
            name if name == "subtract_grad_lse" else f"{name}_{self.flavour}",
            (-(-length // rows) * threads, shape.kv_heads if of_keys else shape.heads, shape.batch),
            threads,
            dict(enumerate(buffers)),
            seed=seed,
        )


def wrong(call: Call, results: dict[str, torch.Tensor]) -> list[str]:
    """The results that differ from attention in float64, and the memory between rows that was written."""
    tolerance = TOLERANCE[call.dtype]
    found = [f"{name}, between rows" for name, p in call.planes.items() if not p.is_untouched_between_rows()]
    for name, result in results.items():
        expected = call.expected[name]
        if name == "lse":
            right = torch.allclose(result.double(), expected, rtol=1e-5, atol=1e-5)
        else:
            right = reference.error(result, expected) < (tolerance if name == "out" else 2 * tolerance)
        if not right:
            found.append(name)
    return found
