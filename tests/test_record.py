"""`orchard-jit record`: what a run uses, in all its processes, as a file for `prebuild`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchard_jit.cli import main
from orchard_jit.commands import kernels
from orchard_jit.jit import recording
from orchard_jit.selection import select

from .test_cli import printed_json, usage_error


def variant(head_dim, **others):
    given = {"backend": "cpu", "kernel": "forward", "dtype": "float32", "head_dim_v": head_dim, **others}
    return select(head_dim=head_dim, **given)


def record(out, *command, **environment):
    return subprocess.run(
        [sys.executable, "-m", "orchard_jit", "record", "-o", str(out), "--", *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def variants_in(path):
    return [variant for grid in kernels.read(path) for variant in grid.variants()]


def test_all_processes_of_a_run_are_recorded(tmp_path, capsys):
    """The program, a fork of it, and a program that it starts; and prebuild has nothing left to do."""
    program = textwrap.dedent(
        """
        import os, subprocess, sys, torch, orchard_jit
        def attend(head_dim, grad=False, **options):
            q = torch.randn(1, 2, 9, head_dim, requires_grad=grad)
            out = orchard_jit.flash_attention(q, q, q, **options)
            if grad:
                out.sum().backward()
        if len(sys.argv) > 1:
            attend(64)
            raise SystemExit(0)
        torch.set_num_threads(1)
        attend(64)
        attend(64)
        if os.fork() == 0:
            attend(64, causal="upper_left")
            os._exit(0)
        os.wait()
        subprocess.run([sys.executable, *sys.orig_argv[1:], "child"], check=True)
        attend(64, grad=True)
        raise SystemExit(7)
        """
    )
    out = tmp_path / "kernels.toml"
    run = record(out, sys.executable, "-c", program)
    assert run.returncode == 7, run.stderr
    assert "3 kernels used, 3 of them new" in run.stderr
    assert set(variants_in(out)) == {
        variant(64),
        variant(64, features=["causal"]),
        variant(64, kernel="backward"),
    }
    listed = printed_json(capsys, "prebuild", str(out), "--dry-run")
    assert len(listed) == 4
    assert all(library["cached"] for library in listed)


def test_several_runs_add_up(tmp_path):
    note = "from orchard_jit.jit import recording; from tests.test_record import variant; "
    out = tmp_path / "kernels.toml"
    for head_dims, new in (((1, 2), 2), ((2, 3), 1)):
        code = f"{note}recording.note([variant(dim) for dim in {head_dims}])"
        assert f"2 kernels used, {new} of them new" in record(out, sys.executable, "-c", code).stderr
    assert set(variants_in(out)) == {variant(1), variant(2), variant(3)}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise SystemExit(3)", 3),
        ("pass", 0),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 128 + signal.SIGTERM),
        ("import os, signal; os.kill(os.getppid(), signal.SIGINT); raise SystemExit(5)", 5),
    ],
)
def test_the_exit_code_is_that_of_the_program(code, expected, tmp_path):
    run = record(tmp_path / "kernels.toml", sys.executable, "-c", code)
    assert run.returncode == expected, run.stderr
    assert "0 kernels used" in run.stderr


def test_bad_usage(tmp_path, capsys):
    assert "say what to run" in usage_error(capsys, "record")
    broken = tmp_path / "kernels.toml"
    broken.write_text("[[")
    assert "kernels.toml" in usage_error(capsys, "record", "-o", str(broken), "--", "false")
    assert main(["record", "-o", str(tmp_path / "new.toml"), "--", "/no/such/program"]) == 127
    assert "no program '/no/such/program'" in capsys.readouterr().err


def test_writers_at_the_same_time_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCHARD_JIT_RECORD", str(tmp_path / "record.jsonl"))
    written = [variant(1 + number % 200) for number in range(800)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: recording.note([each]), written))
    lines = (tmp_path / "record.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == 800
    assert len(list(recording.read(tmp_path / "record.jsonl"))) == 200


def test_a_line_that_is_cut_short_is_passed_over_with_a_warning(tmp_path, monkeypatch, capsys):
    path = tmp_path / "record.jsonl"
    monkeypatch.setenv("ORCHARD_JIT_RECORD", str(path))
    recording.note([variant(5), variant(6)])
    whole = path.read_text()
    path.write_text(whole[:-30])
    with pytest.warns(UserWarning, match="a line that is no variant"):
        assert list(recording.read(path)) == [variant(5)]
    path.write_text(whole)
    assert len(printed_json(capsys, "prebuild", str(path), "--dry-run", "--kernels-only")) == 2


def test_a_recording_that_can_not_be_written_does_not_end_the_run(tmp_path, monkeypatch):
    (tmp_path / "theirs").touch()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("ORCHARD_JIT_RECORD", str(tmp_path / "link"))
    with pytest.warns(UserWarning, match="could not be recorded"):
        recording.note([variant(5)])
    assert (tmp_path / "theirs").read_text() == ""


def test_nothing_is_written_when_nobody_asks(tmp_path, monkeypatch):
    monkeypatch.delenv("ORCHARD_JIT_RECORD", raising=False)
    monkeypatch.chdir(tmp_path)
    recording.note([variant(5)])
    assert list(tmp_path.iterdir()) == []
