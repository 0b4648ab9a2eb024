"""What the Metal host code does to launch a variant, on an NVIDIA GPU and with NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from definition import STORAGE, Array
from software_mac.metal.cuda import CudaModule, Launch

_ALL_ONES = 0xFF  # NaN in every format: what a kernel forgets to write shows
_MORE_THAN_A_CACHE = 256 << 20  # bytes; the L2 of an H200 has 50 MiB
_CALLS_IN_A_ROW = 8
_NUMBERS_OF_FEATURES = 3 * 4 + 1 + 8 * 8  # mask, bias, grad_bias; dropout_threshold; arrays


@dataclass(frozen=True)
class Shape:
    batch: int
    heads: int
    kv_heads: int
    query_length: int
    key_length: int
    head_dim: int

    @property
    def queries(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.query_length, self.head_dim

    @property
    def keys(self) -> tuple[int, int, int, int]:
        return self.batch, self.kv_heads, self.key_length, self.head_dim

    def params(self) -> Array:
        """`OrchardParams`, of dense tensors; causal, the last query sees all keys."""
        sizes = (self.batch, self.heads, self.kv_heads, self.query_length, self.key_length)
        left, right, lower_right = 0, 0, 1
        query, key = (_strides(shape) for shape in (self.queries, self.keys))
        lse = _strides((*self.queries[:3], 1))
        # query, key, value, out, lse, grad_out, grad_query, grad_key, grad_value
        strides = (*query, *key, *key, *query, *lse, *query, *query, *key, *key)
        features = (0,) * _NUMBERS_OF_FEATURES
        return np.array((*sizes, left, right, lower_right, *strides, *features), np.int64)

    def numbers(self) -> Array:
        """`OrchardNumbers`."""
        return np.array((self.head_dim**-0.5, 1, *[0] * 8), np.float32)


class Program:
    """One variant on the GPU."""

    def __init__(self, folder: Path, entry: Mapping[str, Any], narrow: bool = False) -> None:
        self._module = CudaModule((folder / entry["ptx"]).read_text())
        self._kernels = entry["kernels"]
        self._dtype = entry["variant"]["dtype"]
        self._narrow = narrow
        self.times: dict[str, float] = {}
        """Milliseconds of each kernel, of decoding that of both; median of the repetitions."""

    def forward(
        self, shape: Shape, query: Array, key: Array, value: Array, repeat: int
    ) -> tuple[Array, Array]:
        """Output and log-sum-exp in base 2."""
        out, lse = self._new(shape.queries), _unwritten(shape.queries[:3], np.float32)
        buffers = {"query": query, "key": key, "value": value, "out": out, "lse": lse}
        self._run("forward", [self._launch("forward", shape, buffers)], repeat)
        return out, lse

    def backward(
        self, shape: Shape, query: Array, key: Array, value: Array, out: Array, lse: Array, grad_out: Array,
        repeat: int,
    ) -> tuple[Array, Array, Array]:  # fmt: skip
        """The gradients of query, key and value."""
        rows = (shape.query_length + 1) // 2 * 2
        statistics = _unwritten((shape.batch, shape.heads, rows, 2), np.float32)
        grads = self._new(shape.queries), self._new(shape.keys), self._new(shape.keys)
        buffers = {
            "query": query, "key": key, "value": value, "out": out, "lse": lse, "grad_out": grad_out,
            "statistics": statistics, "grad": grads[0], "grad_key": grads[1], "grad_value": grads[2],
        }  # fmt: skip
        for kernel in ("prepare", "grad_query", "grad_key_value"):
            self._run(kernel, [self._launch(kernel, shape, buffers)], repeat)
        return grads

    def decode(
        self, shape: Shape, query: Array, key: Array, value: Array, repeat: int
    ) -> tuple[Array, Array]:
        """Output and log-sum-exp in base 2, from parts of the keys; shares.h.j2 says how many.

        What is timed is a row of calls, each with keys and values of its own, until no cache holds them all:
        a model reads those of its other layers before it comes back.
        """
        how = self._kernels["decode"]
        tiles = -(-shape.heads // shape.kv_heads * shape.query_length // how["rows"])
        wanted = 320 // (shape.batch * shape.kv_heads * tiles)
        shares = max(1, min(wanted, shape.key_length // (2 * how["columns"] * how["teams"])))
        parts = shape.batch * shape.heads * shape.query_length * shares * how["teams"]
        out, lse = self._new(shape.queries), _unwritten(shape.queries[:3], np.float32)
        softmaxes = _unwritten((parts, 2), np.float32)
        partials = _unwritten((parts, -(-shape.head_dim // 8) * 8), np.float32)

        def call(key: Array, value: Array) -> list[Launch]:
            buffers = {
                "query": query, "key": key, "value": value, "out": out, "lse": lse,
                "softmaxes": softmaxes, "partials": partials,
            }  # fmt: skip
            groups = tiles * shares, shape.kv_heads
            return [
                self._launch("decode", shape, buffers, groups),
                self._launch("combine", shape, buffers),
            ]

        layers = -(-_MORE_THAN_A_CACHE // (key.nbytes + value.nbytes)) if repeat else 1
        copies = [(key, value), *((key.copy(), value.copy()) for _ in range(layers - 1))]
        calls = [call(*copies[n % layers]) for n in range(max(layers, _CALLS_IN_A_ROW) if repeat else 1)]
        self._run("decode", [launch for launches in calls for launch in launches], repeat)
        self.times["decode"] /= len(calls)
        return out, lse

    def _launch(
        self, kernel: str, shape: Shape, buffers: Mapping[str, Array], groups: tuple[int, int] | None = None
    ) -> Launch:
        how = self._kernels[kernel]
        over_keys = kernel == "grad_key_value"
        heads, length = (shape.kv_heads, shape.key_length) if over_keys else (shape.heads, shape.query_length)
        given = {**buffers, "params": shape.params(), "numbers": shape.numbers()}
        return Launch(
            kernel if kernel == "combine" else f"{kernel}_{self._width(shape)}",
            (*(groups or (-(-length // how["rows"]), heads)), shape.batch),
            (how["threads"],),
            {index: given[name] for index, name in enumerate(how["buffers"])},
        )

    def _run(self, name: str, launches: Sequence[Launch], repeat: int) -> None:
        times = self._module.run(launches, repeat)
        self.times[name] = median(times) if times else float("nan")

    def _width(self, shape: Shape) -> str:
        """Wide where every row begins on 16 bytes."""
        aligned = shape.head_dim * np.dtype(STORAGE[self._dtype]).itemsize % 16 == 0
        return "wide" if aligned and not self._narrow else "narrow"

    def _new(self, shape: Sequence[int]) -> Array:
        return _unwritten(shape, STORAGE[self._dtype])


def _unwritten(shape: Sequence[int], dtype: type[np.generic]) -> Array:
    array = np.empty(shape, dtype)
    array.view(np.uint8).fill(_ALL_ONES)
    return array


def _strides(shape: tuple[int, int, int, int]) -> tuple[int, int, int]:
    _, heads, rows, head_dim = shape
    return heads * rows * head_dim, rows * head_dim, head_dim
