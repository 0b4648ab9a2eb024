"""`orchard-jit doctor`: a troubleshooting table that checks itself."""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import orchard_jit
from orchard_jit.commands import cache_checks, checks, options
from orchard_jit.commands.checks import Answer
from orchard_jit.commands.console import MARKS, count_text, mark, print_json, wrapped
from orchard_jit.errors import OrchardError

DESCRIPTION = (
    "Check Python, packages, PyTorch, memory, compiler, ninja, cache, prebuilt folders, block sizes, "
    "environment variables, processor, MPS and the operators; say the fix of whatever is wrong. Nothing is "
    "changed."
)
EXAMPLE = "orchard-jit doctor --report"

CHECKS: dict[str, Callable[[], Answer]] = {
    "Python": checks.python,
    "packages": checks.packages,
    "PyTorch": checks.pytorch,
    "processor": checks.processor,
    "memory": checks.free_memory,
    "compiler": checks.compiler,
    "ninja": checks.ninja,
    "cache": cache_checks.cache,
    "limit": cache_checks.limit,
    "builds": cache_checks.builds,
    "temporary": cache_checks.temporary,
    "prebuilt": cache_checks.prebuilt,
    "blocks": cache_checks.blocks,
    "variables": checks.variables,
    "MPS": checks.mps,
    "operators": cache_checks.operators,
}
"""In the order in which one depends on another."""

_NEED_TORCH = {"processor", "compiler", "MPS", "operators"}
_NAME_WIDTH = max(map(len, CHECKS))


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    how = verb.add_mutually_exclusive_group()
    options.add_json(how)
    how.add_argument("--report", action="store_true", help="print Markdown to paste into a bug report")


def run(*, as_json: bool, report: bool) -> int:
    """Check everything, and say the fix of what is wrong. 1 if there is a problem."""
    answers: dict[str, Answer] = {}
    for name, answer in _answers():
        answers[name] = answer
        if not as_json and not report:
            _print(name, answer)
    states = [answer.state for answer in answers.values()]
    if as_json:
        print_json(
            [{"name": n, "state": a.state, "found": a.found, "fix": a.fix} for n, a in answers.items()]
        )
    elif report:
        print(_impersonal(_markdown(answers)))
    else:
        counts = [
            count_text(states.count(state), state) for state in ("problem", "warning") if state in states
        ]
        print(f"\n{', '.join(counts) or 'nothing is wrong'}")
    return 1 if "problem" in states else 0


def _answers() -> Iterator[tuple[str, Answer]]:
    has_torch = True
    for name, check in CHECKS.items():
        answer = (
            _answer(check) if has_torch or name not in _NEED_TORCH else Answer("not run", "needs PyTorch")
        )
        yield name, answer
        has_torch = has_torch and not (name == "PyTorch" and answer.state == "problem")


def _answer(check: Callable[[], Answer]) -> Answer:
    """What a check finds; one that fails has found something too."""
    try:
        return check()
    except OrchardError as error:
        return Answer("problem", "can't be used", str(error))
    except ImportError as error:
        return Answer("problem", str(error), f"pip install {error.name}" if error.name else None)
    except Exception as error:  # a doctor that dies helps nobody
        return Answer(
            "problem", f"{type(error).__name__}: {error}", "report this with orchard-jit doctor --report"
        )


def _print(name: str, answer: Answer) -> None:
    indent = _NAME_WIDTH + 4
    first, *rest = wrapped(answer.found, indent)
    fix = wrapped(f"fix: {answer.fix}", indent) if answer.fix else []
    print(f"{mark(answer.state)} {name:{_NAME_WIDTH}}  {first}")
    for line in (*rest, *fix):
        print(f"{'':{indent}}{line}")


def _markdown(answers: Mapping[str, Answer]) -> str:
    lines = [
        f"orchard_jit {orchard_jit.__version__}, {platform.platform()}",
        "",
        "| | | found | fix |",
        "|---|---|---|---|",
    ]
    for name, answer in answers.items():
        cells = (MARKS[answer.state], name, answer.found, answer.fix or "")
        lines.append(f"| {' | '.join(cell.replace('|', '¦').replace(chr(10), ' ') for cell in cells)} |")
    return "\n".join(lines)


def _impersonal(text: str) -> str:
    """Without the names of people's folders."""
    text = re.sub(rf"{re.escape(str(Path.home()))}(?![\w-])", "~", text)
    return re.sub(r"(/home/|/Users/)[^/\s]+", r"\1…", text)
