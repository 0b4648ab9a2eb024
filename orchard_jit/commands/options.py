"""Options that several verbs have."""

from __future__ import annotations

import argparse

from orchard_jit.commands import values
from orchard_jit.variant import BACKENDS, FEATURES


def add_json(verb: argparse._ActionsContainer) -> None:
    """A document for a program instead of text for a person."""
    verb.add_argument("--json", action="store_true", dest="as_json", help="print JSON for a program to read")


def add_features(verb: argparse.ArgumentParser) -> None:
    """What a variant does beyond plain attention, and its sizes."""
    others = [name for name in FEATURES if name != "causal"]
    verb.add_argument(
        "--features",
        type=values.one_of(others),
        default=[],
        metavar="F[,F]",
        help=f"with {', '.join(others)}",
    )
    verb.add_argument("--score", default="", metavar="SPEC", help="with a score function: ScoreMod.spec")
    verb.add_argument(
        "--blocks",
        type=values.blocks,
        default={},
        metavar="NAME=N[,…]",
        help="in these block sizes, as q=64,k=32",
    )


def add_target(verb: argparse.ArgumentParser) -> None:
    """What a variant runs on."""
    verb.add_argument(
        "--backend", choices=BACKENDS, default="cpu", help="what the kernel runs on (default: cpu)"
    )
    verb.add_argument("--arch", help="instruction set or GPU family (default: this machine's)")
