"""Block sizes ranked by what they ask of a GPU, for machines without one."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from metal_kernels import select
from metal_traffic import FILE

from orchard_jit.backends.metal import groupings
from orchard_jit.blocks.table import Table, fits
from orchard_jit.tuning.result import Rejection

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench" / "gpu"))
import search

SHIPPED = select("forward", torch.float16, 64, features=())
EXPECTED = json.loads(FILE.read_text())["forward float16 64"]


def in_sizes(**sizes: int):
    return SHIPPED.with_blocks({**dict(SHIPPED.blocks), **sizes})


@pytest.fixture(scope="module")
def found():
    """The shipped blocks; such that read all keys twice as often; and twice the threads for the same."""
    variants = (in_sizes(simdgroups=8), in_sizes(rows=8), SHIPPED)
    return search.ranked(search.examine(variant, "forward") for variant in variants)


def test_the_choice_fits_a_gpu(found) -> None:
    grouping = groupings(search.best(found, SHIPPED).variant)["forward"]
    assert grouping.threadgroup_bytes <= search.HALF_A_CORE
    assert grouping.threads <= 1024


def test_the_counts_are_those_of_the_regression_test(found) -> None:
    shipped = next(each for each in found if each.variant == SHIPPED)
    assert {what: shipped.counts[what] for what in EXPECTED} == EXPECTED


def test_more_traffic_ranks_lower(found) -> None:
    *_, last = found
    assert last.variant == in_sizes(rows=8)
    assert last.counts["sectors"] > 1.8 * EXPECTED["sectors"]
    assert last.counts["matrix products"] == EXPECTED["matrix products"]


def test_of_equal_costs_the_smaller_threadgroup_is_first(found) -> None:
    assert [each.simdgroups for each in found[:2]] == [4, 8]
    assert found[0].cost() == found[1].cost()


@pytest.mark.parametrize("what", search.WEIGHTS)
def test_more_of_anything_costs_more(found, what: str) -> None:
    more = replace(found[0], counts={**found[0].counts, what: found[0].counts.get(what, 0) + 1})
    assert search.ranked([more, found[0]]) == [found[0], more]


def test_what_does_not_leave_room_for_a_second_threadgroup_is_refused() -> None:
    verdict = search.examine(in_sizes(rows=32, columns=16, simdgroups=8, split=8), "forward")
    assert isinstance(verdict, Rejection)
    assert verdict.reason == "two threadgroups of 32768 bytes don't fit into a core"


def test_without_ptxas_spills_are_unknown_not_none(monkeypatch, capsys) -> None:
    monkeypatch.setattr(search, "resources", lambda ptx, registers=None: None)
    shipped = search.examine(SHIPPED, "forward")
    assert "spilt sectors" not in shipped.counts
    search.report([shipped], SHIPPED, ["rows"])
    titles, _, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(titles.split(" | "), row.split(" | "), strict=True))
    assert (cells["spilt sectors"], cells["rows"]) == ("-", "16")


def test_hardly_less_is_no_reason_to_leave_the_shipped_sizes(found) -> None:
    shipped, other = found[:2]
    slightly = replace(other, counts={**other.counts, "sectors": other.counts["sectors"] - 0.1})
    clearly = replace(other, counts={**other.counts, "sectors": other.counts["sectors"] - 1})
    assert search.best(search.ranked([shipped, slightly]), SHIPPED) == shipped
    assert search.best(search.ranked([shipped, clearly]), SHIPPED) == clearly


def test_each_kernel_of_a_pass_is_chosen_for_itself() -> None:
    backward = select("backward", torch.float16, 64, features=())
    zero = dict.fromkeys(search.WEIGHTS, 0.0)

    def candidate(kernel: str, products: float, **sizes: int):
        variant = backward.with_blocks({**dict(backward.blocks), **sizes})
        return search.Candidate(variant, kernel, {**zero, "matrix products": products})

    columns = {"grad_query": "dq_columns", "grad_key_value": "dkv_columns"}
    kernels = [search.kernel_of(backward, names) for names in search.groups(backward)]
    found = [[candidate(each, 1, **{columns[each]: 64}), candidate(each, 2)] for each in kernels]
    assert {*kernels} == {*columns}
    expected = {**dict(backward.blocks), "dq_columns": 64, "dkv_columns": 64}
    assert search.entry(backward, found)["blocks"] == expected


def test_the_file_it_writes_chooses_the_blocks(found, tmp_path, monkeypatch) -> None:
    clearly = replace(found[1], counts={**found[1].counts, "sectors": 1.0})
    entry = search.entry(SHIPPED, [search.ranked([found[0], clearly])])
    path = tmp_path / "blocks.json"
    Table([entry]).write(path)
    assert fits(entry, SHIPPED)
    monkeypatch.setenv("ORCHARD_JIT_BLOCKS", str(path))
    assert select("forward", torch.float16, 64, features=()) == clearly.variant


def test_counting_leaves_the_choice_of_blocks_as_it_was(monkeypatch) -> None:
    monkeypatch.setenv("ORCHARD_JIT_BLOCKS", "mine.json")
    with search.in_force(SHIPPED):
        assert os.environ["ORCHARD_JIT_BLOCKS"] != "mine.json"
    assert os.environ["ORCHARD_JIT_BLOCKS"] == "mine.json"
