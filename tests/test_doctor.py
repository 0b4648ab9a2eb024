"""`orchard-jit doctor`: a check and a fix for everything that users report, on machines that have it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import orchard_jit
from orchard_jit.cli import main
from orchard_jit.commands import cache_checks, checks, doctor, memory, probe
from orchard_jit.errors import CacheError
from orchard_jit.jit import lock, recipe, roots
from orchard_jit.jit.store import Store

from .jit.tiny import KEY, SHELF, publish

PACKAGE = Path(orchard_jit.__file__).parent
MEGABYTE = 10**6


def answers_of(capsys, code=0):
    assert main(["doctor", "--json"]) == code
    return {answer["name"]: answer for answer in json.loads(capsys.readouterr().out)}


def python(*arguments, cwd=PACKAGE.parent, **environment):
    words = [sys.executable, "-m", "orchard_jit", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(words, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


def test_this_machine_is_good(capsys, empty_cache):
    assert {answer["state"] for answer in answers_of(capsys).values()} <= {"ok", "warning"}
    assert main(["doctor"]) == 0
    assert "\033" not in capsys.readouterr().out
    assert not list(empty_cache.iterdir()), "it only looks"


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
        ("limit", {}, "ok", "of 4.0 GB"),
        ("limit", {"ORCHARD_JIT_CACHE_MAX_SIZE": "off"}, "ok", "any size"),
        ("limit", {"ORCHARD_JIT_CACHE_MAX_SIZE": "lots"}, "problem", "500MB or 2GB, got 'lots'"),
        ("builds", {}, "ok", "nothing left behind"),
        ("temporary", {}, "ok", "free"),
    ],
)
def test_each_check_says_the_fix(check, environment, state, words, empty_cache, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    module = checks if hasattr(checks, check) else cache_checks
    answer = doctor._answer(getattr(module, check))
    assert answer.state == state
    assert words in f"{answer.found} {answer.fix}"


class FullDisk:
    free = 5 * MEGABYTE


class TestDisks:
    def test_almost_full(self, empty_cache, monkeypatch):
        monkeypatch.setattr("shutil.disk_usage", lambda _: FullDisk)
        for answer in (cache_checks.cache(), cache_checks.temporary()):
            assert answer.state == "warning"
            assert "5.0 MB free, which is little" in answer.found

    def test_noexec(self, empty_cache, tmp_path, monkeypatch):
        monkeypatch.setattr(roots, "is_noexec", lambda _: True)
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(tmp_path))
        tmp_path.chmod(0o755)
        for answer in (cache_checks.cache(), cache_checks.prebuilt()):
            assert answer.state == "problem"
            assert "noexec" in answer.found

    def test_not_writable(self, empty_cache, monkeypatch):
        monkeypatch.setattr("os.access", lambda *_: False)
        answer = cache_checks.cache()
        assert answer.state == "warning"
        assert "ORCHARD_JIT_CACHE_DIR" in answer.fix

    def test_a_network_mount_is_named(self, empty_cache, monkeypatch):
        monkeypatch.setattr(cache_checks, "_mount_type", lambda _: "nfs4")
        assert "on nfs4" in cache_checks.cache().found

    def test_others_may_write(self, empty_cache, capsys):
        empty_cache.chmod(0o777)
        answer = answers_of(capsys, code=1)["cache"]
        assert answer["state"] == "problem"
        assert "chmod -R go-w" in answer["fix"]

    def test_beyond_its_limit(self, empty_cache, monkeypatch):
        publish(Store(empty_cache, writable=True), b"x" * 5000)
        monkeypatch.setenv("ORCHARD_JIT_CACHE_MAX_SIZE", "1k")
        assert "orchard-jit prune" in cache_checks.limit().fix


class TestWhatIsCompiled:
    def test_damage(self, empty_cache):
        entry = publish(Store(empty_cache, writable=True))
        entry.library.write_bytes(b"Library")
        answer = cache_checks.cache()
        assert (answer.state, answer.fix[:18]) == ("warning", "orchard-jit verify")
        assert entry.library.exists(), "the doctor only looks"

    def test_a_torch_that_was_there_before(self, empty_cache):
        publish(Store(empty_cache, writable=True), spec={"binding": {"torch": "2.1.0"}})
        assert "1 of other versions (orchard-jit prune --stale)" in cache_checks.cache().found

    def test_a_prebuilt_folder_that_nothing_here_asks_for(self, tmp_path, empty_cache, monkeypatch):
        tmp_path.chmod(0o755)
        monkeypatch.setenv("ORCHARD_JIT_PREBUILT_DIRS", str(tmp_path))
        store = Store(tmp_path, writable=True)
        publish(store, key_inputs={"origin": {"templates": {"cpu": "0" * 64}}})
        answer = cache_checks.prebuilt()
        assert answer.state == "warning"
        assert "from sources of another version" in answer.found
        publish(store, key="f" * 20, shelf="plan9-mips")
        answer = cache_checks.prebuilt()
        assert answer.state == ("ok" if recipe.platform_tag() == SHELF else "warning")

    def test_who_compiles_now_and_what_was_left(self, empty_cache):
        store = Store(empty_cache, writable=True)
        store.stage(KEY)
        with lock.held(store.lock_path(KEY), print):
            assert f"by process {os.getpid()} since" in cache_checks.builds().found
        assert "1 folder of failed or ended builds" in cache_checks.builds().found

    def test_a_file_of_tuned_blocks(self, tmp_path, capsys, monkeypatch):
        tuned = tmp_path / "tuned.json"
        tuned.write_text("{")
        monkeypatch.setenv("ORCHARD_JIT_TUNED", str(tuned))
        answers = answers_of(capsys, code=1)
        assert answers["blocks"]["state"] == answers["compiler"]["state"] == "problem"
        assert str(tuned) in answers["blocks"]["found"]
        tuned.write_text('{"format": 1, "entries": [{"blocks": {"q": 64}}]}')
        assert "1 tuned kernel in" in cache_checks.blocks().found


class TestOperators:
    @pytest.fixture(autouse=True)
    def _compiled(self, monkeypatch):
        monkeypatch.setattr(checks, "stored_operators", lambda: iter([object()]))

    @pytest.mark.parametrize(
        ("reply", "state", "words"),
        [
            (probe.Reply({"kernels": 2, "error": 1e-7}), "ok", "a call runs 2 kernels of ours"),
            (probe.Reply({"kernels": 0, "error": 0.0}), "problem", "not by our kernels explain"),
            (probe.Reply({}, "MissingVariantError: it"), "ok", "smoke"),
            (
                probe.Reply({}, "OSError: undefined symbol: _ZN3c10"),
                "problem",
                "undefined symbol clear --all",
            ),
            (probe.Reply({}, "killed by signal 11"), "problem", "killed by signal 11"),
        ],
    )
    def test_a_call_is_tried_in_another_process(self, reply, state, words, monkeypatch):
        monkeypatch.setattr(probe, "call", lambda: reply)
        answer = cache_checks.operators()
        assert answer.state == state
        assert all(word in f"{answer.found} {answer.fix}" for word in words.split())


class TestPyTorch:
    @pytest.fixture
    def broken(self, tmp_path):
        """broken(code): the environment in which this is all of PyTorch."""

        def broken(code):
            (tmp_path / "site" / "torch").mkdir(parents=True)
            (tmp_path / "site" / "torch" / "__init__.py").write_text(code)
            return {"PYTHONPATH": os.pathsep.join((str(tmp_path / "site"), str(PACKAGE.parent)))}

        return broken

    @pytest.mark.parametrize(
        ("code", "words"),
        [
            ("raise ImportError('libtorch_cpu.so: undefined symbol')", "libtorch_cpu.so: undefined symbol"),
            ("raise OSError('libc10.so: cannot open shared object file')", "libc10.so"),
            ("import os; os.kill(os.getpid(), 4)", "killed by signal 4"),
            ("raise ImportError('the first line\\n  and a second one')", "ImportError: the first line"),
            ("raise SystemExit(3)", "exit code 3"),
        ],
    )
    def test_a_broken_one(self, code, words, broken, empty_cache):
        if "SystemExit" in code or "kill" in code:
            code = f"import sys\nif '-c' in sys.orig_argv:\n    {code}\nraise ImportError"
        finished = python("doctor", "--json", **broken(code))
        assert finished.returncode == 1, finished.stderr
        answers = {answer["name"]: answer for answer in json.loads(finished.stdout)}
        assert answers["PyTorch"]["state"] == "problem"
        assert words in answers["PyTorch"]["found"]
        assert "pip install" in answers["PyTorch"]["fix"]
        assert answers["operators"]["state"] == "not run"
        assert answers["cache"]["state"] == answers["ninja"]["state"] == "ok"

    def test_none_at_all(self, empty_cache, tmp_path):
        """The standard library and this package, and nothing else."""
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from orchard_jit.cli import main; main()"
        words = [sys.executable, "-I", "-S", "-c", code, str(PACKAGE.parent), "doctor"]
        finished = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert "pip install torch ninja jinja2 platformdirs" in finished.stdout
        assert finished.stderr == ""

    def test_a_script_that_takes_its_name(self, tmp_path, monkeypatch):
        (tmp_path / "jinja2.py").touch()
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "jinja2", raising=False)
        answer = checks.packages()
        assert (answer.state, answer.found) == ("warning", "imported from the current folder: jinja2")

    def test_an_untested_release(self, monkeypatch):
        monkeypatch.setattr(probe, "torch", lambda: probe.Reply({"version": "2.1.0"}))
        assert checks.pytorch().state == "warning"

    def test_the_releases_are_those_of_pyproject(self):
        text = (PACKAGE.parent / "pyproject.toml").read_text()
        oldest, newest = re.search(r'"torch>=(\d+\.\d+),<=(\d+\.\d+)', text).groups()
        assert oldest == ".".join(map(str, checks.OLDEST_TORCH))
        assert newest == ".".join(map(str, checks.NEWEST_TORCH))


def test_little_memory(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 300 * MEGABYTE)
    answer = checks.free_memory()
    assert (answer.state, answer.found) == ("warning", "300.0 MB free")


def test_a_check_that_fails_is_a_finding(monkeypatch, capsys):
    def fail():
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr(doctor, "CHECKS", {"one": fail, "PyTorch": checks.python})
    answer = answers_of(capsys, code=1)["one"]
    assert answer["found"] == "ZeroDivisionError: surprise"


def test_errors_of_the_package_have_their_own_fix():
    def fail():
        raise CacheError("do this")

    assert doctor._answer(fail).fix == "do this"


def test_every_variable_that_the_package_reads_is_known():
    modules = [path for path in PACKAGE.rglob("*.py") if "commands" not in path.parts]
    read = {name for path in modules for name in re.findall(r'"(ORCHARD_[A-Z_]+)"', path.read_text())}
    assert read <= set(checks.VARIABLES)


class TestTheReport:
    def test_is_a_table_without_names_of_people(self, tmp_path, capsys, monkeypatch):
        home = tmp_path / "home" / "ada"
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(home / "cache"))
        monkeypatch.setenv("ORCHARD_JIT_BLOCKS", "/home/grace/blocks.json")
        assert main(["doctor", "--report"]) == 1
        out = capsys.readouterr().out
        assert "~/cache" in out
        assert "ada" not in out
        assert "grace" not in out
        assert orchard_jit.__version__ in out
        assert all(line.count("|") == 5 for line in out.splitlines() if line.startswith("|"))

    def test_and_json_exclude_each_other(self, capsys):
        with pytest.raises(SystemExit):
            main(["doctor", "--report", "--json"])


def test_a_terminal_without_unicode(empty_cache):
    finished = python("doctor", PYTHONIOENCODING="ascii")
    assert finished.stderr == ""
    assert finished.returncode == 0
    assert "? Python" in finished.stdout
