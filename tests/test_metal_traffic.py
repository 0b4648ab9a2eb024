"""A change that makes the Metal kernels move more, or work more, is seen here, wherever it runs."""

from __future__ import annotations

import json

import pytest
import torch
from metal_traffic import CASES, FILE, OPERATIONS, measure, title

EXPECTED = json.loads(FILE.read_text())
ROUNDING = 1.01


@pytest.mark.parametrize(("kernel", "dtype", "head_dim"), CASES, ids=[title(*case) for case in CASES])
def test_kernels_ask_no_more_of_a_gpu_than_they_did(kernel: str, dtype: torch.dtype, head_dim: int) -> None:
    case = title(kernel, dtype, head_dim).split(maxsplit=1)[1]
    for name, counts in measure(kernel, dtype, head_dim).items():
        expected = EXPECTED[f"{name} {case}"]
        more = {what: (n, expected[what]) for what, n in counts.items() if n > ROUNDING * expected[what]}
        assert more == {}, f"{name}; if that is meant, write {FILE.name} anew with {FILE.stem}.py"


def test_every_product_is_useful() -> None:
    """1024 operations each: no block of a full, aligned call is computed twice or for nothing."""
    assert {counts["matrix products"] for counts in EXPECTED.values()} == {round(1000 / 1024, 4)}


def test_every_kernel_of_the_table_has_counts() -> None:
    assert {row.split()[0] for row in EXPECTED} == set(OPERATIONS)
