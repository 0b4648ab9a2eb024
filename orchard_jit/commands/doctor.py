"""`orchard-jit doctor`: a troubleshooting table that checks itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from orchard_jit.commands import checks, options
from orchard_jit.commands.checks import Answer
from orchard_jit.commands.console import count_text, mark, print_json, wrapped
from orchard_jit.errors import BlocksError, CacheError

DESCRIPTION = (
    "Check Python, PyTorch, compiler, ninja, cache, prebuilt folders, block sizes, environment variables, "
    "processor, MPS and the operators; say the fix of whatever is wrong. Nothing is changed."
)
EXAMPLE = "orchard-jit doctor"

CHECKS: dict[str, Callable[[], Answer]] = {
    "Python": checks.python,
    "PyTorch": checks.pytorch,
    "processor": checks.processor,
    "compiler": checks.compiler,
    "ninja": checks.ninja,
    "cache": checks.cache,
    "prebuilt": checks.prebuilt,
    "blocks": checks.blocks,
    "variables": checks.variables,
    "MPS": checks.mps,
    "operators": checks.operators,
}

_NAME_WIDTH = max(map(len, CHECKS))


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    options.add_json(verb)


def run(*, as_json: bool) -> int:
    """Check everything, and say the fix of what is wrong. 1 if there is a problem."""
    answers: dict[str, Answer] = {}
    for name, check in CHECKS.items():
        try:
            answers[name] = check()
        except CacheError as error:
            answers[name] = Answer("problem", "the cache can't be used", str(error))
        except BlocksError as error:
            answers[name] = Answer("problem", "kernels can't be chosen", str(error))
        if not as_json:
            _print(name, answers[name])
    states = [answer.state for answer in answers.values()]
    if as_json:
        print_json(
            [{"name": n, "state": a.state, "found": a.found, "fix": a.fix} for n, a in answers.items()]
        )
    else:
        counts = [
            count_text(states.count(state), state) for state in ("problem", "warning") if state in states
        ]
        print(f"\n{', '.join(counts) or 'nothing is wrong'}")
    return 1 if "problem" in states else 0


def _print(name: str, answer: Answer) -> None:
    indent = _NAME_WIDTH + 4
    first, *rest = wrapped(answer.found, indent)
    fix = wrapped(f"fix: {answer.fix}", indent) if answer.fix else []
    print(f"{mark(answer.state)} {name:{_NAME_WIDTH}}  {first}")
    for line in (*rest, *fix):
        print(f"{'':{indent}}{line}")
