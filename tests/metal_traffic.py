"""What the Metal kernels ask of a GPU for each 1000 useful operations, counted by the software Mac.

    python tests/metal_traffic.py        # writes metal_traffic.json, which test_metal_traffic.py reads

Useful are the multiplications and additions of the products with the head dim: 4 for each score and element
of a row in the forward pass, 6 in dQ and 8 in dK/dV. An 8x8x8 matrix product has 1024.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from metal_calls import Call, Shape
from metal_kernels import Kernels, select

FILE = Path(__file__).with_suffix(".json")
SIMD = 32

# Dtypes and head dims of both kinds: rows of one simdgroup, and of teams.
CASES = (
    ("forward", torch.float32, 64),
    ("forward", torch.float16, 64),
    ("forward", torch.float32, 128),
    ("forward", torch.float16, 128),
    ("backward", torch.float32, 64),
    ("backward", torch.float16, 64),
    ("backward", torch.float32, 128),
    ("backward", torch.float16, 128),
    ("decode", torch.float16, 128),
)
SQUARE = Shape(128, 256, heads=1, kv_heads=1)
ONE_QUERY = Shape(1, 1024, heads=8, kv_heads=1)
OPERATIONS = {"forward": 4, "grad_query": 6, "grad_key_value": 8, "decode": 4}


def measure(kernel: str, dtype: torch.dtype, head_dim: int) -> dict[str, dict[str, float]]:
    """The counts of each kernel of a pass that walks over a sequence."""
    shape = ONE_QUERY if kernel == "decode" else SQUARE
    variant = select(kernel, dtype, head_dim, features=())
    kernels = Kernels(variant, "wide")
    kernels.counts = {}
    kernels.run(Call(shape, variant, "wide"))
    scores = shape.heads * shape.query_length * shape.key_length
    found = {}
    for name, (statistics, traffic) in kernels.counts.items():
        if name not in OPERATIONS:
            continue
        counts = {
            "device bytes": traffic.device_bytes_read + traffic.device_bytes_written,
            "sectors": traffic.sectors_read + traffic.sectors_written,
            "threadgroup bytes": traffic.threadgroup_bytes,
            "bank conflicts": traffic.bank_conflicts,
            "barriers": statistics.threadgroup_barriers,
            "shuffles": statistics.simdgroup_operations - traffic.matrix_products,
            "exp2": traffic.exponentials / SIMD,
            "matrix products": traffic.matrix_products,
        }
        useful = OPERATIONS[name] * scores * head_dim / 1000
        found[name] = {what: round(number / useful, 4) for what, number in counts.items()}
    return found


def title(kernel: str, dtype: torch.dtype, head_dim: int) -> str:
    return f"{kernel} {str(dtype).removeprefix('torch.')} {head_dim}"


def main() -> None:
    rows = [
        f"  {json.dumps(f'{name} {case.split(maxsplit=1)[1]}')}: {json.dumps(counts)}"
        for kernel, dtype, head_dim in CASES
        for case in (title(kernel, dtype, head_dim),)
        for name, counts in measure(kernel, dtype, head_dim).items()
    ]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main()
