"""What the pages say is true: their programs run, their links lead somewhere, and they name all there is."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest

import orchard_jit
from orchard_jit import cli

from . import pages

API = pages.ROOT / "docs" / "api.md"
COMMANDS = pages.ROOT / "docs" / "command-line.md"
MODULES = ("orchard_jit", "orchard_jit.distributed", "orchard_jit.integrations.flex")
LINKED = [
    *(pages.README, pages.ROOT / "CHANGELOG.md", *pages.DOCS),
    *sorted(
        path for folder in ("bench", "examples", "tests") for path in (pages.ROOT / folder).rglob("*.md")
    ),
]


def sections(page):
    """What stands below each heading of the second level, by heading."""
    parts = re.split(r"^## (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_column(section):
    """The cells in which a table of a section names something, but for those of its head."""
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    return {name for cell in rows for name in re.findall(r"`([^`]*)`", cell)}


@pytest.mark.parametrize("page", pages.DOCS, ids=lambda page: page.stem)
def test_a_page_runs(page, tmp_path):
    pages.run(page, tmp_path)


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_links_lead_somewhere(page):
    assert pages.broken_links(page) == []


def test_the_index_names_every_page():
    index = (pages.ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert all(f"]({page.name})" in index for page in pages.DOCS if page.name != "README.md")


def test_few_blocks_are_not_run():
    blocks = (block for page in pages.DOCS for block in pages.blocks(page))
    silent = [block.place for block in blocks if block.first_line.startswith("# Not run:")]
    assert len(silent) <= 2, silent


def test_what_performance_says_was_measured():
    results = "".join(path.read_text(encoding="utf-8") for path in (pages.ROOT / "bench").rglob("*.md"))
    page = (pages.ROOT / "docs" / "performance.md").read_text(encoding="utf-8").replace("**", "")
    told = set(re.findall(r"\d+\.\d+ / \d+\.\d+", page))
    assert len(told) > 60
    assert told <= set(re.findall(r"(?=\b(\d+\.\d+ / \d+\.\d+))", results.replace("**", "")))


def test_drawings_are_as_drawn(tmp_path):
    folder = pages.ROOT / "docs" / "drawings"
    subprocess.run([sys.executable, folder / "draw.py", tmp_path], check=True)
    for drawn in tmp_path.iterdir():
        assert (folder / drawn.name).read_text(encoding="utf-8") == drawn.read_text(encoding="utf-8")
    assert {path.name for path in folder.glob("*.svg")} == {path.name for path in tmp_path.iterdir()}


class TestPages:
    """A page that is wrong is found out."""

    @pytest.mark.parametrize(
        "text",
        [
            "```python\nprint(1)\n```\n\n```text\n2\n```\n",
            "```python\nraise ValueError('a')\n```\n",
            "```python\nraise ValueError('a')\n```\n```text\nTypeError: a\n```\n",
            "```python\nprint(1)\n```\n```text\n…2…\n```\n",
            "```sh\norchard-jit prune --max-sizes 1GB\n```\n",
            "```sh\nX=1 orchard-jit list && orchard-jit lost\n```\n",
            "```sh\npython bench/none.py\n```\n",
            "```sh\npip install '.[none]'\n```\n",
            "```console\n$ orchard-jit list\nnothing\n```\n",
            "```console\n$ orchard-jit import none.tar.gz\n…\n```\n",
            "```json\n{\n```\n",
        ],
    )
    def test_what_it_shows(self, text, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(text, encoding="utf-8")
        with pytest.raises((AssertionError, ValueError)):
            pages.run(page, tmp_path)

    def test_what_it_points_at(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(
            "# One `two`\n[a](#one-two) [b](#two) [c](page.md) [d](none.md) `[e](none)`\n", "utf-8"
        )
        assert pages.broken_links(page) == ["#two", "none.md"]


class TestApi:
    def test_every_public_name_has_a_heading(self):
        errors = {name for name in orchard_jit.__all__ if name.endswith("Error")}
        assert {name.lower() for name in set(orchard_jit.__all__) - errors} <= pages.anchors(API)
        assert errors - {"OrchardError"} <= first_column(sections(API)["Errors"])

    @pytest.mark.parametrize("name", MODULES)
    def test_signatures_are_those_of_the_code(self, name):
        module, stubs = importlib.import_module(name), pages.signatures(API, name)
        assert set(stubs) == set(module.__all__)
        for each, node in stubs.items():
            stub, real = defined(node), getattr(module, each)
            if inspect.isfunction(real):
                assert inspect.signature(stub) == inspect.signature(real), each
                continue
            assert [base.__name__ for base in stub.__bases__] == [base.__name__ for base in real.__bases__], (
                each
            )
            assert stub.__annotations__ == vars(real).get("__annotations__", {}), each
            assert public_members(stub) == public_members(real), each

    def test_every_function_has_an_example(self):
        page = API.read_text(encoding="utf-8")
        for name in orchard_jit.__all__:
            if inspect.isfunction(getattr(orchard_jit, name)):
                assert re.search(rf"orchard_jit\.{name}\(", page), name


def defined(stub):
    """The function or class that a stub stands for; annotations are texts, as in the code."""
    module = ast.Module([stub], [])
    names = {"OrchardError": orchard_jit.OrchardError}
    exec(compile(module, "stub", "exec", flags=annotations.compiler_flag), names)
    return names[stub.name]


def public_members(kind):
    """Signatures of methods, and properties, that a class defines itself."""
    members = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    if "__init__" in vars(kind) and "ScoreMod" in kind.__name__:
        members["__init__"] = kind.__init__
    return {
        name: inspect.signature(value.fget if isinstance(value, property) else value)
        for name, value in members.items()
        if callable(value) or isinstance(value, property)
    }


class TestCommandLine:
    def test_every_verb_has_a_section(self):
        assert set(cli._VERBS) | {"Environment variables"} == set(sections(COMMANDS))

    @pytest.mark.parametrize("verb", cli._VERBS)
    def test_options_are_those_of_the_parser(self, verb):
        parsers = next(a for a in cli._parser([verb])._actions if isinstance(a, argparse._SubParsersAction))
        actions = [a for a in parsers.choices[verb]._actions if not isinstance(a, argparse._HelpAction)]
        assert first_column(sections(COMMANDS)[verb].split("```")[0]) == {
            text for action in actions for text in written(action)
        }

    def test_variables_are_those_that_the_code_reads(self):
        texts = [
            path.read_text(encoding="utf-8")
            for folder in ("orchard_jit", "templates")
            for path in (pages.ROOT / folder).rglob("*")
            if path.suffix in (".py", ".cpp", ".h", ".j2")
        ]
        read = {name for text in texts for name in re.findall(r'"(ORCHARD_[A-Z_]*[A-Z])"', text)}
        told = first_column(sections(COMMANDS)["Environment variables"])
        assert {name for name in told if name.startswith("ORCHARD_")} == read


def written(action):
    """An option as the page writes it: its names, and what follows the last one."""
    value = action.metavar or ("" if action.choices else action.dest.upper())
    if not action.option_strings:
        return [value]
    *others, last = action.option_strings
    return [*others, last if action.nargs == 0 or not value else f"{last} {value}"]
