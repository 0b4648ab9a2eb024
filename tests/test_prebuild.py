"""`orchard-jit prebuild`: from options or a file, several at a time, and as the offline error prints it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from orchard_jit import ScoreMod, binding
from orchard_jit.cli import main
from orchard_jit.commands import builds, kernels, memory
from orchard_jit.commands.console import UsageError, bar, duration_text
from orchard_jit.errors import MissingVariantError
from orchard_jit.jit import library, recipe
from orchard_jit.jit.store import LAYOUT
from orchard_jit.selection import select

from .conftest import ROOT
from .test_cli import printed_json, usage_error

# A head dim that no other test compiles: what this process has loaded already would not be built again.
SMALL = ["--head-dim", "3", "--dtype", "float32", "--causal", "no", "--kernel", "forward", "--kernels-only"]
SMALL_NAME = re.compile(r"cpu-\S+-forward-f32-d3\S*")


def python(*arguments, **environment):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "orchard_jit", *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What `prebuild` says of one kernel, in a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    cache.chmod(0o700)
    finished = python("prebuild", *SMALL, "--json", ORCHARD_JIT_CACHE_DIR=str(cache))
    assert finished.returncode == 0, finished.stderr
    (outcome,) = json.loads(finished.stdout)["libraries"]
    return cache, outcome


def cpu(kernel="forward", dtype="float32", dims=(11, 11), **others):
    return select(backend="cpu", kernel=kernel, dtype=dtype, head_dim=dims[0], head_dim_v=dims[1], **others)


VARIANTS = {
    "plain": lambda: cpu("backward", "float16", features=["causal"]),
    "features": lambda: cpu(features=["window", "mask", "bias_f32", "dropout", "sinks"]),
    "backward alone": lambda: cpu("backward", features=["bias", "bias_grad"]),
    "own value dim": lambda: cpu(dtype="bfloat16", dims=(11, 9), features=["varlen"]),
    "decode": lambda: cpu("decode", features=["causal", "lengths"]),
    "score": lambda: cpu(score=ScoreMod("score * (q - kv)", mask="kv <= q + 2").spec),
    "blocks": lambda: cpu("backward").with_blocks({"q": 64, "k": 40}),
    "another instruction set": lambda: cpu(arch="x86-64"),
    "metal": lambda: select(
        backend="metal", kernel="forward", dtype="float16", head_dim=11, head_dim_v=11, features=["causal"]
    ),
}
"""Of each kind one that no other test compiles."""


@pytest.fixture
def operators_alone(tmp_path, monkeypatch):
    """An empty cache, and a prebuilt folder with the operators, which take long, and nothing else."""
    binding.load()
    made = library.find(recipe.for_binding()).directory
    shutil.copytree(made, tmp_path / "prebuilt" / LAYOUT / made.parent.name / made.name)
    (tmp_path / "cache").mkdir(mode=0o700)
    monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(tmp_path / "prebuilt"))
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", VARIANTS)
def test_the_command_that_the_offline_error_prints_builds_what_is_missing(
    kind, operators_alone, capsys, monkeypatch
):
    missing = recipe.for_variant(VARIANTS[kind]())
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setenv("ORCHARD_JIT_OFFLINE", "1")
    with pytest.raises(MissingVariantError) as refused:
        library.load(missing)
    program, *arguments = shlex.split(str(refused.value).splitlines()[-1])
    assert program == "orchard-jit"

    monkeypatch.delenv("ORCHARD_JIT_OFFLINE")
    assert main(arguments) == 0, capsys.readouterr().out

    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setenv("ORCHARD_JIT_OFFLINE", "1")
    assert library.load(missing)


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_file_of_kernels_gives_back_the_variants_that_were_written(kind, tmp_path):
    path = tmp_path / "kernels.toml"
    assert kernels.append(path, [VARIANTS[kind]()]) == 1
    assert [variant for grid in kernels.read(path) for variant in grid.variants()] == [VARIANTS[kind]()]


def test_a_file_of_kernels_is_added_to_and_never_twice(tmp_path):
    path = tmp_path / "kernels.toml"
    path.write_text('# mine\n[[kernels]]\nhead_dim = [11, 16]\ndtype = "float32"\ncausal = false\n')
    variants = [cpu(), cpu("backward"), cpu(features=["causal"])]
    assert kernels.append(path, variants) == 1
    assert kernels.append(path, variants) == 0
    assert path.read_text().startswith("# mine\n")
    assert {variant for grid in kernels.read(path) for variant in grid.variants()} >= set(variants)


def test_kernels_that_differ_in_nothing_else_share_a_table(tmp_path):
    path = tmp_path / "kernels.toml"
    kernels.append(path, [cpu("backward"), cpu()])
    assert path.read_text().count("[[kernels]]") == 1
    assert 'kernel = ["forward", "backward"]' in path.read_text()


def test_a_table_means_every_combination(tmp_path, capsys):
    path = tmp_path / "kernels.toml"
    path.write_text(
        "[[kernels]]\nhead_dim = [64, 128]\ndtype = ['bfloat16', 'float16']\n"
        "[[kernels]]\nhead_dim = 64\ndtype = 'float32'\nfeatures = ['window']\nkernel = 'forward'\n"
    )
    listed = printed_json(capsys, "prebuild", str(path), "--dry-run", "--kernels-only")
    assert len(listed) == 2 * 2 * 2 * 2 + 1
    flags = ["--head-dim", "64,128", "--dtype", "bfloat16,float16"]
    by_flags = printed_json(capsys, "prebuild", *flags, "--dry-run", "--kernels-only")
    assert {each["key"] for each in by_flags} < {each["key"] for each in listed}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[kernels]", "kernels.toml: "),
        ("", "has tables [[kernels]]"),
        ("[[kernel]]\nhead_dim = 64", "has tables [[kernels]], not kernel"),
        ("[[kernels]]\ndtype = 'float32'", "[[kernels]] 1 has no head_dim"),
        ("[[kernels]]\nhead_dim = 64\n[[kernels]]\nhead_dim = 0", "[[kernels]] 2: head_dim must be of"),
        ("[[kernels]]\nhead_dim = true", "head_dim must be of the numbers from 1 to 512, got True"),
        ("[[kernels]]\nhead_dim = 64\ndtype = 'int8'", "dtype must be of float32, float16"),
        ("[[kernels]]\nhead_dim = 64\ncausal = 'yes'", 'causal must be true, false or "both"'),
        ("[[kernels]]\nhead_dim = 64\nfeatures = 'causal'", "features must be of window, mask"),
        ("[[kernels]]\nhead_dim = 64\nblocks = {q = 0}", "blocks must be as { q = 64, k = 32 }"),
        ("[[kernels]]\nhead_dim = 64\nblocks = {rows = 8}", "no block rows"),
        ("[[kernels]]\nhead_dim = 64\nheads = 8", "nothing reads heads"),
        ("[[kernels]]\nhead_dim = 64\narch = 'mars'", "[[kernels]] 1: arch must be one of"),
        ("[[kernels]]\nhead_dim = 64\nbackend = 'cuda'", "backend must be of cpu, metal"),
        ("[[kernels]]\nhead_dim = 64\nscore = 3", "score must be a string"),
    ],
)
def test_a_file_that_is_none_is_an_error_that_names_the_table(text, message, tmp_path, capsys):
    path = tmp_path / "kernels.toml"
    path.write_text(text)
    assert message in usage_error(capsys, "prebuild", str(path)).replace("\n", " ")


def test_a_file_takes_no_options_that_it_would_not_heed(tmp_path, capsys):
    path = tmp_path / "kernels.toml"
    path.write_text("[[kernels]]\nhead_dim = 64")
    said = usage_error(capsys, "prebuild", str(path), "--dtype", "float32", "--causal", "no")
    assert "leave out --dtype, --causal" in said


def test_without_a_reader_of_toml_it_says_what_to_install(tmp_path, monkeypatch):
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="pip install tomli"):
        kernels.read(tmp_path / "kernels.toml")


def test_what_is_built_is_kept_when_a_later_run_goes_on(operators_alone, capsys, monkeypatch):
    """The first run is interrupted after one kernel; the second one compiles the other alone."""
    two = [*SMALL[:-3], "--kernel", "forward,backward", "--kernels-only", "--jobs", "1"]
    monkeypatch.setattr(library, "_loaded", {})
    outcomes = builds.build_all(
        [recipe.for_variant(cpu(kernel, dims=(3, 3))) for kernel in ("forward", "backward")], 1
    )
    assert next(outcomes).state == "built"
    outcomes.close()
    capsys.readouterr()
    assert main(["prebuild", *two]) == 0
    assert re.search(r"2 libraries: 1 built, 1 cached, in", capsys.readouterr().out)


def test_no_more_is_compiled_at_a_time_than_there_is_memory_for():
    budget, most, now, lock = memory.Budget(100), [0], [0], threading.Lock()

    def build(size):
        with budget.share(size):
            with lock:
                now[0] += size
                most[0] = max(most[0], now[0])
            time.sleep(0.01)
            with lock:
                now[0] -= size

    threads = [threading.Thread(target=build, args=(40,)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [80]


def test_what_needs_more_memory_than_there_is_is_built_alone():
    budget, entered = memory.Budget(10), threading.Event()
    with budget.share(500):
        waiting = threading.Thread(target=lambda: budget.share(1).__enter__() or entered.set())
        waiting.start()
        assert not entered.wait(0.1)
    waiting.join(10)
    assert entered.is_set()


def test_memory_is_that_of_the_tightest_control_group(tmp_path, monkeypatch):
    here = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2].lstrip("/")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    unlimited = memory.available_bytes()
    group = tmp_path / here
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text("max\n")
    assert memory.available_bytes() > unlimited / 2
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert memory.available_bytes() == 600_000


def test_the_rest_is_estimated_from_earlier_builds(monkeypatch):
    recipes = [recipe.for_variant(cpu(dims=(dim, dim))) for dim in (1, 2, 3, 4)]
    monkeypatch.setattr(library, "expected_seconds", lambda recipe: 10.0)
    estimate = builds.Estimate(recipes, jobs=2)
    assert estimate.seconds_left() == pytest.approx(20, abs=1)
    estimate.add(builds.Outcome(recipes[0], "built", 20.0))
    assert estimate.done == 1
    assert estimate.seconds_left() == pytest.approx(30, abs=1)  # they take twice as long as they used to


def test_the_bar_and_its_time():
    assert bar(0.5) == "━" * 12 + "─" * 12
    assert [duration_text(seconds) for seconds in (44.4, 89, 200, 7200)] == ["44 s", "89 s", "3 min", "2 h"]


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


def test_prebuild_builds_once(built, capsys, monkeypatch):
    cache, outcome = built
    assert outcome["state"] == "built"
    assert SMALL_NAME.fullmatch(outcome["title"])
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(cache))
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
