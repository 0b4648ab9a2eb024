"""The command line: what it prints, what it returns, what it refuses."""

import ast
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import orchard_jit
from orchard_jit.cli import main
from orchard_jit.commands import checks, console
from orchard_jit.errors import MissingVariantError
from orchard_jit.jit import library, recipe
from orchard_jit.selection import select

PACKAGE = Path(orchard_jit.__file__).parent
VERBS = ("smoke", "doctor", "bench", "tune", "prebuild", "list", "show", "clear", "render")
# A head dim that no other test compiles: what this process has loaded already would not be built again.
SMALL = ["--head-dim", "3", "--dtype", "float32", "--causal", "no", "--kernel", "forward", "--kernels-only"]
SMALL_NAME = re.compile(r"cpu-\S+-forward-f32-d3\S*")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What `prebuild` says of one kernel in a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    cache.chmod(0o700)
    finished = python("prebuild", *SMALL, "--json", ORCHARD_JIT_CACHE_DIR=str(cache))
    assert finished.returncode == 0, finished.stderr
    (outcome,) = json.loads(finished.stdout)["libraries"]
    return cache, outcome


@pytest.fixture
def cache(built, monkeypatch):
    folder, outcome = built
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(folder))
    return outcome


def python(*arguments, **environment):
    words = [sys.executable, "-m", "orchard_jit", *arguments]
    return subprocess.run(
        words,
        env={**os.environ, **environment},
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )


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


@pytest.mark.parametrize("features", [(), ("causal",)])
@pytest.mark.parametrize(
    ("kernel", "dtype", "dims"), [("forward", "float32", (64, 64)), ("backward", "float16", (72, 40))]
)
def test_the_printed_prebuild_command_works_verbatim(
    kernel, dtype, dims, features, capsys, empty_cache, monkeypatch
):
    monkeypatch.setenv("ORCHARD_JIT_OFFLINE", "1")
    variant = select(
        backend="cpu",
        kernel=kernel,
        dtype=dtype,
        head_dim=dims[0],
        head_dim_v=dims[1],
        features=features,
        arch="x86-64",
    )
    missing = recipe.for_variant(variant)
    with pytest.raises(MissingVariantError) as refused:
        library.load(missing)
    program, *arguments = shlex.split(str(refused.value).splitlines()[-1])
    assert program == "orchard-jit"
    listed = printed_json(capsys, *arguments, "--dry-run")
    assert missing.key in [library["key"] for library in listed]
    assert not any(library["cached"] for library in listed)


def test_the_printed_command_names_block_sizes_that_are_not_shipped(capsys):
    variant = select(backend="cpu", kernel="backward", dtype="float32", head_dim=64, head_dim_v=64)
    wanted = variant.with_blocks({"q": 64, "k": 32})
    _, *arguments = shlex.split(library.prebuild_command(wanted))
    (listed,) = printed_json(capsys, *arguments, "--kernels-only", "--dry-run")
    assert listed["key"] == recipe.for_variant(wanted).key


def test_the_printed_command_for_the_operators_works_verbatim(capsys):
    (listed,) = printed_json(capsys, "prebuild", "--operators", "--dry-run")
    assert listed["key"] == recipe.for_binding().key


def test_prebuild_lists_every_combination_once(capsys, empty_cache):
    listed = printed_json(
        capsys, "prebuild", "--head-dim", "64,64,128", "--dtype", "float32,float16", "--dry-run"
    )
    titles = [library["title"] for library in listed]
    assert len(titles) == len(set(titles)) == 1 + 2 * 2 * 2 * 2
    assert main(["prebuild", "--head-dim", "64", "--dtype", "float32", "--dry-run"]) == 0
    assert "5 libraries: 0 cached, 5 to build" in capsys.readouterr().out
    assert not list(empty_cache.glob("*"))


def test_prebuild_builds_once(cache, capsys):
    assert cache["state"] == "built"
    assert SMALL_NAME.fullmatch(cache["title"])
    assert main(["prebuild", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "cached" in out
    assert "1 library: 1 cached" in out


def test_prebuild_names_what_failed(capsys, empty_cache, monkeypatch):
    monkeypatch.setenv("ORCHARD_JIT_CXXFLAGS", "-include not-there.h")
    assert main(["prebuild", *SMALL]) == 1
    out = capsys.readouterr().out
    assert "1 library: 1 failed" in out
    assert "not-there.h" in out
    monkeypatch.setenv("CXX", "no-such-compiler")
    (outcome,) = printed_json(capsys, "prebuild", *SMALL, code=1)["libraries"]
    assert outcome["state"] == "failed"
    assert "no-such-compiler" in outcome["error"]


def test_prebuild_refuses_a_cache_that_would_be_lost(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert main(["prebuild", *SMALL]) == 1
    assert "ORCHARD_JIT_CACHE_DIR" in capsys.readouterr().err


def test_list(cache, capsys):
    (entry,) = printed_json(capsys, "list")
    assert (entry["key"], entry["name"]) == (cache["key"], cache["title"])
    assert entry["writable"]
    assert entry["size"] > 0
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert cache["key"][:10] in out
    assert cache["title"] in out


def test_list_of_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "none"))
    assert main(["list"]) == 0
    assert "no cache yet" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_show_by_prefix_and_by_name(cache, capsys):
    for wanted in (cache["key"], cache["key"][:4], cache["title"]):
        shown = printed_json(capsys, "show", wanted)
        assert shown["manifest"]["key"] == cache["key"]
        assert shown["damage"] is None
    assert main(["show", cache["key"]]) == 0
    out = capsys.readouterr().out
    assert cache["directory"] in out
    assert "whole" in out


def test_show_of_something_unknown_is_one_clean_message(cache, capsys):
    assert main(["show", "nothing"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("orchard-jit: no entry")
    assert len(captured.err.splitlines()) == 1


def test_show_and_doctor_tell_of_damage(cache, capsys):
    (file,) = Path(cache["directory"]).glob("*.so")
    whole = file.read_bytes()
    file.write_bytes(whole + b"x")
    try:
        assert printed_json(capsys, "show", cache["key"], code=1)["damage"]
        assert checks.cache().state == "warning"
        assert file.exists(), "the doctor only looks"
    finally:
        file.write_bytes(whole)


def test_clear(built, tmp_path, capsys, monkeypatch):
    folder, outcome = built
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(copy))
    monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(folder))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "--yes" in usage_error(capsys, "clear")
    assert main(["clear", "--dry-run"]) == 0
    assert "1 library" in capsys.readouterr().out
    cleared = printed_json(capsys, "clear", "--yes")
    assert cleared["keys"] == [outcome["key"]]
    assert cleared["bytes"] > 10_000
    (left,) = printed_json(capsys, "list")
    assert not left["writable"]
    assert main(["clear", "--yes"]) == 0
    assert "0 libraries" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "code", "left"), [("y", 0, 0), ("", 1, 1)])
def test_clear_asks_on_a_terminal(answer, code, left, built, tmp_path, capsys, monkeypatch):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(built[0]), str(copy)], check=True)
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(copy))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["clear"]) == code
    capsys.readouterr()
    assert len(printed_json(capsys, "list")) == left


def test_doctor_finds_this_machine_good(capsys):
    answers = printed_json(capsys, "doctor")
    assert {answer["state"] for answer in answers} <= {"ok", "warning"}
    assert main(["doctor"]) == 0
    assert "\033" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("check", "environment", "state", "words"),
    [
        ("compiler", {"CXX": "no-such-compiler"}, "problem", "apt-get install g++"),
        ("compiler", {"ORCHARD_JIT_CXXFLAGS": "-no-such-flag"}, "problem", "ORCHARD_JIT_CXXFLAGS"),
        ("operators", {"ORCHARD_JIT_OFFLINE": "1"}, "problem", "prebuild --operators"),
        ("operators", {"CXX": "no-such-compiler"}, "problem", "elsewhere"),
        ("operators", {}, "ok", "not compiled yet"),
        ("prebuilt", {"ORCHARD_JIT_PREBUILT_DIRS": "/no/such/folder"}, "warning", "/no/such/folder"),
        ("variables", {"ORCHARD_JIT_CACHEDIR": "x"}, "warning", "did you mean ORCHARD_JIT_CACHE_DIR"),
        ("variables", {"ORCHARD_JIT_QUIET": "1"}, "ok", "ORCHARD_JIT_QUIET=1"),
        ("blocks", {}, "ok", "shipped"),
        ("blocks", {"ORCHARD_JIT_BLOCKS": "/no/such/file"}, "problem", "/no/such/file"),
        ("cache", {}, "ok", "0 libraries"),
        ("cache", {"ORCHARD_JIT_CACHE_DIR": "/dev/null"}, "problem", "not a folder"),
    ],
)
def test_doctor_says_the_fix(check, environment, state, words, empty_cache, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    answer = getattr(checks, check)()
    assert answer.state == state
    assert words in f"{answer.found} {answer.fix}"


def test_doctor_reports_a_damaged_file_of_tuned_blocks(tmp_path, capsys, monkeypatch):
    tuned = tmp_path / "tuned.json"
    tuned.write_text("{")
    monkeypatch.setenv("ORCHARD_JIT_TUNED", str(tuned))
    answers = {answer["name"]: answer for answer in printed_json(capsys, "doctor", code=1)}
    assert answers["blocks"]["state"] == answers["compiler"]["state"] == "problem"
    assert str(tuned) in answers["blocks"]["found"]
    tuned.write_text('{"format": 1, "entries": [{"blocks": {"q": 64}}]}')
    assert "1 tuned kernel in" in checks.blocks().found


def test_doctor_reports_a_cache_that_others_may_write(empty_cache, capsys):
    empty_cache.chmod(0o777)
    answers = {answer["name"]: answer for answer in printed_json(capsys, "doctor", code=1)}
    assert answers["cache"]["state"] == "problem"
    assert "chmod go-w" in answers["cache"]["fix"]


def test_doctor_warns_of_an_untested_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.1.0")
    assert checks.pytorch().state == "warning"


def test_doctor_knows_what_pyproject_allows():
    text = (PACKAGE.parent / "pyproject.toml").read_text()
    oldest, newest = re.search(r'"torch>=(\d+\.\d+),<=(\d+\.\d+)', text).groups()
    assert oldest == ".".join(map(str, checks.OLDEST_TORCH))
    assert newest == ".".join(map(str, checks.NEWEST_TORCH))


def test_doctor_knows_every_variable_that_the_package_reads():
    modules = [path for path in PACKAGE.rglob("*.py") if "commands" not in path.parts]
    read = {name for path in modules for name in re.findall(r'"(ORCHARD_[A-Z_]+)"', path.read_text())}
    assert read <= set(checks.VARIABLES)


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


def test_a_terminal_without_unicode(built):
    finished = python("doctor", PYTHONIOENCODING="ascii", ORCHARD_JIT_CACHE_DIR=str(built[0]))
    assert finished.stderr == ""
    assert finished.returncode == 0
    assert "? Python" in finished.stdout


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
