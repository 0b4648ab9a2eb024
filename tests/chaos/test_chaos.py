"""A little of everything that `python -m tests.chaos` does in full."""

from __future__ import annotations

import errno

import pytest

from . import trials


@pytest.fixture(autouse=True)
def _one_cache(empty_cache, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)


def test_kills_at_random_moments():
    assert trials.kills(8)["right afterwards"] == 8


def test_kills_at_some_steps():
    assert trials.kills_at_steps(every=6)["right afterwards"] >= 5


@pytest.mark.parametrize("code", trials.MACHINE_ERRORS, ids=errno.errorcode.get)
def test_a_disk_that_fails(code):
    assert trials.refusals(every=9, errors=[code])["right afterwards"] >= 3


def test_corruptions_of_every_file():
    assert trials.corruptions(positions=24)["found"] > 50


def test_many_processes_build_each_library_once():
    assert trials.crowd(processes=6, libraries=2)["builds"] == 2
