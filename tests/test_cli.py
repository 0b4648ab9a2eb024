"""The command line: what it prints, what it returns, what it refuses."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import orchard_jit
from orchard_jit import cli
from orchard_jit.cli import main
from orchard_jit.commands import console
from orchard_jit.jit import recipe
from orchard_jit.selection import select

PACKAGE = Path(orchard_jit.__file__).parent
VERBS = tuple(cli._VERBS)


def usage_error(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def printed_json(capsys, *arguments, code=0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("width", ["80", "100"])
@pytest.mark.parametrize("verb", [(), *((verb,) for verb in VERBS)])
def test_help_is_complete_and_fits(verb, width, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", width)
    with pytest.raises(SystemExit) as stopped:
        main([*verb, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "example: orchard-jit" in out
    assert max(map(len, out.splitlines())) <= int(width)


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"orchard_jit {orchard_jit.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "COMMAND"),
        (("nonsense",), "nonsense"),
        (("prebuild",), "--head-dim"),
        (("prebuild", "--head-dim", "0"), "1 to 512"),
        (("prebuild", "--head-dim", "64,x"), "'x'"),
        (("prebuild", "--head-dim", "64", "--dtype", "int8"), "bfloat16"),
        (("prebuild", "--head-dim", "64", "--arch", "mars"), "arch must be one of"),
        (("prebuild", "--head-dim", "64", "--jobs", "0"), "from 1"),
        (("prebuild", "--operators", "--kernels-only"), "not allowed"),
        (("render", "--kernel", "forward", "--dtype", "float32"), "--head-dim"),
        (
            ("render", "--kernel", "forward", "--dtype", "float32", "--head-dim", "64", "--file", "x.h"),
            "variant.h",
        ),
        (("prebuild", "--head-dim", "64", "--blocks", "q=many"), "as in q=64,k=32"),
        (("prebuild", "--head-dim", "64", "--blocks", "rows=8"), "no block rows; they have k, q"),
        (("clear", "--json"), "--yes"),
        (("show",), "KEY_OR_NAME"),
    ],
)
def test_bad_usage_says_what_is_accepted(arguments, message, capsys):
    assert message in usage_error(capsys, *arguments)


RENDER = ("render", "--kernel", "forward", "--dtype", "bfloat16", "--head-dim", "64", "--causal")


def test_render_prints_what_the_compiler_would_get(capsys):
    variant = select(
        backend="cpu", kernel="forward", dtype="bfloat16", head_dim=64, head_dim_v=64, features=("causal",)
    )
    wanted = recipe.for_variant(variant)
    described = printed_json(capsys, *RENDER)
    assert described["key"] == wanted.key
    assert described["files"] == dict(wanted.files)
    assert described["compile_flags"] == list(wanted.compile_flags)

    assert main([*RENDER, "--file", "params.h"]) == 0
    assert capsys.readouterr().out == wanted.files["params.h"]

    assert main(RENDER) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in wanted.files.values())


def test_render_writes_files(tmp_path, capsys):
    assert main([*RENDER, "--head-dim-v", "32", "--arch", "x86-64", "--out", str(tmp_path / "new")]) == 0
    out = capsys.readouterr().out
    assert "key:" in out
    assert "-march=x86-64 " in f"{out} " or "-march=x86-64\n" in out
    assert {"forward.cpp", "params.h"} <= {path.name for path in (tmp_path / "new").iterdir()}


def test_nothing_but_the_command_line_imports_commands():
    for path in PACKAGE.rglob("*.py"):
        if "commands" in path.parts or path.name == "cli.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            )
            module = getattr(node, "module", None) or ""
            assert not any("commands" in name for name in (module, *names)), path


def test_warnings_are_one_line(capsys, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(cache))

    def run(**_):
        import warnings

        warnings.warn("orchard_jit: something", stacklevel=1)
        return 0

    monkeypatch.setattr("orchard_jit.commands.listing.run", run)
    assert main(["list"]) == 0
    assert capsys.readouterr().err == "orchard-jit: warning: something\n"


def test_module_runs_and_a_closed_pipe_is_no_traceback():
    words = [sys.executable, "-m", "orchard_jit", *RENDER]
    process = subprocess.Popen(
        words, cwd=PACKAGE.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (812, "812 B"), (45_100, "45.1 kB"), (1_400_000, "1.4 MB")]
)
def test_bytes_text(count, text):
    assert console.bytes_text(count) == text


def test_sparkline():
    assert console.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 0, 7, 8) == "▁▂▃▄▅▆▇█"
    assert console.sparkline([7, 7, 0, 0], 0, 7, 2) == "█▁"
    assert console.sparkline([1, 1], 1, 1, 30) == "▁▁"


def test_json_has_no_nan(capsys):
    console.print_json({"a": [float("nan"), 1.0], "b": (float("inf"),)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.0], "b": [None]}
