"""Pages in Markdown as programs: what a page shows is run, and what it points at is there.

The language of a fence says what becomes of its block:

- `python` is run, all of a page in one namespace; a `text` block right below is what it prints, or raises.
- `console` has lines `$ orchard-jit …`, which are run in a cache of the page's own, and what they print.
- `sh` is not run: its `orchard-jit` commands are parsed; scripts, modules and extras have to exist.
- `pyi` holds signatures, which `signatures` returns.
- `json` and `toml` are parsed.

`…` stands for anything. Below a line that is but a file's name, a block is written to that file. A block that
begins with `# Not run:` is parsed, and one that begins with `# Needs NAME` is run where NAME is installed.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import orchard_jit
from orchard_jit import binding, cli
from orchard_jit.jit import entry, library

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r"^`([\w.-]+)`:?\n+\Z", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`[^`\n]*`")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_NEEDS = re.compile(r"# Needs (\w+)")
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_BUDGET = 1.0
"""Seconds of tuning, where a page asks for more."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        place: Where its text begins, as file:line.
        file: What it is to be written to.
        output: What it is to print, or to raise.

    """

    language: str
    text: str
    place: str
    file: str | None = None
    output: str | None = None

    @property
    def first_line(self) -> str:
        return self.text.partition("\n")[0]


def blocks(page: Path) -> list[Block]:
    """All of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for fence in _FENCE.finditer(source):
        language, text = fence.groups()
        between, end = source[end : fence.start()], fence.end()
        if language == "text" and not between.strip() and found and found[-1].language == "python":
            code = found.pop()
            found.append(Block("python", code.text, code.place, code.file, text))
            continue
        place = f"{os.path.relpath(page, ROOT)}:{source.count(chr(10), 0, fence.start(2)) + 1}"
        title = _TITLE.search(between)
        found.append(Block(language, text, place, title and title[1]))
    return found


def run(page: Path, folder: Path) -> dict[str, object]:
    """Run a page in an empty folder. Returns what its Python has named."""
    names: dict[str, object] = {"__name__": "__main__"}
    with _inside(folder):
        for block in blocks(page):
            if block.file is not None:
                Path(block.file).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                _run_python(block, names)
            elif block.language in _OTHERS:
                _OTHERS[block.language](block)
    return names


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Whatever a page sets or tunes is forgotten behind it."""
    before = Path.cwd()
    hurried = partial(_hurried, orchard_jit.tune)
    orchard_jit.report(reset=True)
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ), mock.patch.object(orchard_jit, "tune", hurried):
            os.environ |= {"ORCHARD_JIT_QUIET": "1", "ORCHARD_JIT_TUNED": str(folder / "tuned.json")}
            yield
    finally:
        os.chdir(before)
        orchard_jit.restore_sdpa()
        binding.forget_kernels()


def _hurried(tune, *tensors, budget=_BUDGET, **options):
    return tune(*tensors, budget=min(budget, _BUDGET), **options)


def _run_python(block: Block, names: dict[str, object]) -> None:
    page, _, line = block.place.partition(":")
    code = "\n" * (int(line) - 1) + block.text  # tracebacks name the page's own lines
    needs = _NEEDS.match(block.first_line)
    if block.first_line.startswith("# Not run:") or (needs and not importlib.util.find_spec(needs[1])):
        ast.parse(code)
        return
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
    except Exception as error:
        if block.output is None:
            raise
        printed.write(f"{type(error).__name__}: {error}\n")
    if block.output is not None:
        _compare(printed.getvalue(), block.output, block.place)


def _run_console(block: Block) -> None:
    for command in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, _, expected = command.partition("\n")
        _compare(_printed(line, block.place), expected, f"{block.place}: {line}")


def _printed(line: str, place: str) -> str:
    """What a command prints; with `|| echo $?`, its exit code too."""
    line, shows_code, _ = line.partition(" || echo $?")
    settings, words = _without_settings(shlex.split(line, comments=True))
    assert words[0] == "orchard-jit", f"{place}: only orchard-jit is run, not {words[0]}"
    cache = Path("cache").absolute()
    cache.mkdir(mode=0o700, exist_ok=True)
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        mock.patch.dict(os.environ, {"ORCHARD_JIT_CACHE_DIR": str(cache), **settings}),
        _as_a_process(),
    ):
        try:
            code = cli.main(words[1:])
        except SystemExit as stopped:
            code = stopped.code
    assert shows_code or code == 0, f"{place}: exit code {code}\n{printed.getvalue()}"
    return printed.getvalue() + (f"{code}\n" if shows_code and code else "")


@contextlib.contextmanager
def _as_a_process() -> Iterator[None]:
    """A command has loaded nothing before, and holds nothing when it has ended."""
    with mock.patch.object(library, "_loaded", {}), mock.patch.object(entry, "_held", deque()) as held:
        try:
            yield
        finally:
            for descriptor in held:
                os.close(descriptor)


def _without_settings(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The variables that are set for a command, and the command."""
    count = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), len(words))
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def _compare(actual: str, expected: str, place: str) -> None:
    def plain(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())

    pattern = ".*?".join(map(re.escape, plain(expected).split("…")))
    assert re.fullmatch(pattern, plain(actual), re.DOTALL), f"{place}: expected\n{expected}\ngot\n{actual}"


def _check_shell(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                _check_command(_without_settings(command)[1], block.place)
                command = []
            else:
                command.append(word)


def _check_command(words: list[str], place: str) -> None:
    program = Path(words[0]).name if words else ""
    if program == "orchard-jit":
        refused = None
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                cli._parser(words[1:]).parse_args(words[1:])
            except SystemExit as stopped:
                refused = stopped.code
        assert not refused, f"{place}: {shlex.join(words)}\n{said.getvalue()}"
    elif program in ("python", "python3") and words[1:2] == ["-m"]:
        assert importlib.util.find_spec(words[2]), f"{place}: there is no module {words[2]}"
    elif program in ("python", "python3") and "/" in "".join(words[1:2]):
        assert (ROOT / words[1]).is_file(), f"{place}: there is no {words[1]}"
    elif program == "pip":
        for extra in re.findall(r"(?:\.|orchard_jit)\[(\w+)\]", " ".join(words)):
            assert extra in _PROJECT["optional-dependencies"], f"{place}: there is no extra {extra}"


_OTHERS = {
    "console": _run_console,
    "sh": _check_shell,
    "json": lambda block: json.loads(block.text),
    "toml": lambda block: tomllib.loads(block.text),
}


def signatures(page: Path, module: str) -> dict[str, ast.stmt]:
    """What the `pyi` blocks of a page define, of which the first line names the module if it is another."""
    stubs = [block for block in blocks(page) if block.language == "pyi"]
    own = [block for block in stubs if _module(block) == module]
    return {node.name: node for block in own for node in ast.parse(block.text).body}


def _module(block: Block) -> str:
    return block.first_line.removeprefix("# ") if block.first_line.startswith("#") else orchard_jit.__name__


def prose(page: Path) -> str:
    """A page without its blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """What a link can point at: headings, as GitHub writes them."""
    found: set[str] = set()
    for heading in _HEADING.findall(prose(page)):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        found.add(next(each for each in (name, *(f"{name}-{i}" for i in range(1, 99))) if each not in found))
    return found


def broken_links(page: Path) -> list[str]:
    """Links to files that are not there, or to headings that they don't have."""
    return [link for link in _LINK.findall(_CODE.sub("", prose(page))) if _is_broken(page, link)]


def _is_broken(page: Path, link: str) -> bool:
    if link.startswith(("https://", "mailto:")):
        return False
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    return not target.exists() or (bool(anchor) and anchor not in anchors(target))
