"""What the README says of features is true: its table, against the suite that shows them; its examples."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import orchard_jit

from . import pages, test_features

README = pages.README.read_text(encoding="utf-8")
TABLE = re.search(r"\| feature \| argument.*?\n\n", README, re.DOTALL)[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.strip().splitlines()[2:]]
GROUP_OF = {"alibi_slopes": "alibi", "score_mod": "score", "dropout_p": "dropout", "key_lengths": "lengths"}


def arguments():
    """The rows that are about an argument of flash_attention, by its name."""
    known = inspect.signature(orchard_jit.flash_attention).parameters
    return {row[1].strip("`"): row for row in ROWS if row[1].strip("`") in known}


def test_the_table_holds_what_the_suite_shows_on_both_devices():
    assert {GROUP_OF.get(name, name) for name in arguments()} == set(test_features.GROUPS)
    assert all(row[2:4] == ["forward, backward"] * 2 for row in arguments().values())


@pytest.mark.parametrize("name", ("bias", "sinks", "alibi_slopes", "score_mod"))
def test_the_table_says_which_arguments_have_gradients(name):
    tensor = {"bias": torch.randn(4, 4), "sinks": torch.randn(2)}.get(name, torch.rand(2)).requires_grad_()
    value = orchard_jit.ScoreMod("score + t[h]", t=tensor) if name == "score_mod" else tensor
    q = torch.randn(1, 2, 4, 16)
    if arguments()[name][4].startswith("yes"):
        orchard_jit.flash_attention(q, q, q, **{name: value}).sum().backward()
        assert tensor.grad.shape == tensor.shape
    else:
        assert arguments()[name][4] == "refused"
        with pytest.raises(NotImplementedError, match="requires a gradient"):
            orchard_jit.flash_attention(q, q, q, **{name: value})


def test_the_examples_run(tmp_path):
    names = pages.run(pages.README, tmp_path)
    assert names["q"].grad is not None
