"""Attention by its definition, in float64 and in blocks of queries; and the number formats of the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

STORAGE = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""NumPy has no bfloat16: an array of its bits stands for it."""

_QUERIES = 1024  # of a block


def encode(values: Array, dtype: str) -> Array:
    """float32 to the dtype, to the nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(STORAGE[dtype])
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decode(values: Array, dtype: str) -> Array:
    """The dtype to float64."""
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def attention(query: Array, key: Array, value: Array, grad_out: Array, causal: bool) -> dict[str, Array]:
    """Everything of (batch, heads, rows, head dim) float64 arrays; key and value may have fewer heads.

    Causal, the last query sees all keys. A query without keys gives 0, and -inf as its (natural) log-sum-exp.
    """
    batch, heads, rows, head_dim = query.shape
    key_length, group = key.shape[2], heads // key.shape[1]
    result = {name: np.zeros_like(a) for name, a in (("out", query), ("grad_query", query),
                                                     ("grad_key", key), ("grad_value", value))}  # fmt: skip
    result["lse"] = np.empty((batch, heads, rows))
    scale = head_dim**-0.5
    for b, head, first in np.ndindex(batch, heads, -(-rows // _QUERIES)):
        these = (b, head, slice(first * _QUERIES, min((first + 1) * _QUERIES, rows)))
        q, d_o, k, v = query[these], grad_out[these], key[b, head // group], value[b, head // group]
        s = scale * (q @ k.T)
        if causal:
            last = np.arange(these[2].start, these[2].stop) + key_length - rows
            s[np.arange(key_length) > last[:, None]] = -np.inf
        peak = np.maximum(s.max(-1, keepdims=True), np.finfo(np.float64).min)
        p = np.exp(s - peak)
        total = p.sum(-1, keepdims=True)
        p /= np.where(total == 0, 1, total)
        with np.errstate(divide="ignore"):
            result["lse"][these] = (peak + np.log(total))[:, 0]
        result["out"][these] = p @ v
        d_s = p * (d_o @ v.T - (d_o * result["out"][these]).sum(-1, keepdims=True))
        result["grad_query"][these] = scale * (d_s @ k)
        result["grad_key"][b, head // group] += scale * (d_s.T @ q)
        result["grad_value"][b, head // group] += p.T @ d_o
    return result


def error(actual: Array, expected: Array) -> float:
    """Distance relative to the size of `expected`, over its finite elements; infinity if others differ."""
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite]) or not np.isfinite(actual[finite]).all():
        return float("inf")
    distance = np.linalg.norm(actual[finite] - expected[finite])
    return float(distance / max(np.linalg.norm(expected[finite]), 1e-30))
