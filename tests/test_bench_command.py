"""`orchard-jit bench`: what it prints and writes. No test depends on what is faster."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from orchard_jit.cli import main
from orchard_jit.commands import bench, clones, plots
from orchard_jit.commands.calls import Call
from orchard_jit.commands.peak import Peak, measure
from orchard_jit.errors import MissingVariantError
from orchard_jit.timing import Pair, Stopwatch, compare

from .conftest import ROOT

SMALL = ("bench", "--head-dim", "8", "--length", "16", "--dtype", "float32", "--heads", "2", "--rounds", "1")
PEAK = Peak(1e12, "by guessing")


@pytest.fixture(autouse=True)
def _known_peak(monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda device, dtype, threads: PEAK)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def lines(capsys, *arguments):
    assert main([*SMALL, *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def printed(capsys, *arguments):
    assert main([*SMALL, *arguments, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_line_for_each_pass_of_each_call(capsys):
    out = lines(capsys)
    assert out[0].startswith(f"orchard_jit on cpu, torch {torch.__version__}, B1 H2, ")
    assert "peak 1000 GFLOP/s, by guessing" in out[2]
    heading = next(index for index, line in enumerate(out) if line.startswith("dtype"))
    rows = [line.split() for line in out[heading + 1 : heading + 5]]
    assert [(row[3], row[5]) for row in rows] == [
        ("none", "forward"),
        ("none", "backward"),
        ("causal", "forward"),
        ("causal", "backward"),
    ]
    assert all(row[-1].endswith("%") for row in rows)
    assert "visible keys" in out[-1]
    assert max(map(len, out)) <= 100


def test_json_for_a_program(capsys, tmp_path):
    file = tmp_path / "bench.json"
    assert lines(capsys, "--causal", "yes", "--kv-heads", "1", "--threads", "1", "--json", str(file))
    report = json.loads(file.read_text())
    (row,) = report["rows"]
    assert (row["causal"], row["kv_heads"], row["threads"], row["length"]) == (True, 1, 1, 16)
    assert row["forward"].keys() == {"ours", "theirs", "fastest", "ratio", "ratio_of_minima", "share_of_peak"}
    share = 2 * 2 * 2 * (16 * 17 / 2) * 8 / row["forward"]["fastest"] / 1e12
    assert row["forward"]["share_of_peak"] == pytest.approx(share)
    assert report["peaks"] == [{"dtype": "float32", "threads": 1, "flops": 1e12, "method": "by guessing"}]
    assert report["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_one_pass_alone(name, capsys):
    (row,) = printed(capsys, "--causal", "no", f"--{name}")["rows"]
    assert (name in row, len({"forward", "backward"} & row.keys())) == (True, 1)


def test_masks(capsys):
    rows = printed(capsys, "--mask", "none,bool,bias", "--forward")["rows"]
    assert [(row["mask"], row["causal"]) for row in rows] == [
        ("none", False),
        ("bool", False),
        ("bias", False),
        ("none", True),
    ]


@pytest.mark.parametrize("mask", ["none", "bool", "bias"])
def test_ours_and_pytorchs_compute_the_same(mask):
    for device in ("cpu", "mps"):
        call = Call(device, "float32", 1, 4, 2, 19, 8, mask == "none", mask, 1)
        query, key, value, _ = call._tensors(device)
        ours, theirs = (
            attention(query, key, value) for attention in (call._ours(device), call._pytorchs(device))
        )
        torch.testing.assert_close(ours.cpu(), theirs.cpu())


def test_without_a_compiler_for_the_peak_there_is_no_share(capsys, monkeypatch):
    def fail(device, dtype, threads):
        raise MissingVariantError("compiling is forbidden\nin two lines")

    monkeypatch.setattr(bench, "measure", fail)
    out = lines(capsys, "--forward", "--causal", "no")
    assert "! no peak for float32: compiling is forbidden" in out
    assert out[5].endswith("–")


@pytest.mark.parametrize(
    ("dtype", "words"),
    [("float16", "by multiply-adds of float32"), ("float64", "by multiply-adds of float64")],
)
def test_the_peak_is_measured(dtype, words):
    peak = measure("cpu", dtype, 1)
    assert peak.flops > 1e8
    assert words in str(peak)


def test_on_mps_the_peak_is_that_of_a_product(monkeypatch):
    monkeypatch.setattr("orchard_jit.commands.peak._MATRIX", 16)
    monkeypatch.setattr("orchard_jit.commands.peak._SECONDS", 1e-4)
    peak = measure("mps", "float16", 1)
    assert peak.flops > 0
    assert "product of 16 x 16 matrices" in str(peak)


@pytest.mark.skipif(sys.platform == "darwin", reason="the other process installs the software Mac")
def test_on_mps_also_against_the_cpu_and_clones(capsys, monkeypatch):
    install = "import sys; sys.path.insert(0, 'tests'); from software_mac import mps; mps.install(); "
    monkeypatch.setattr(clones, "_CODE", install + clones._CODE)
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.delenv("ORCHARD_STORAGE", raising=False)
    (row,) = printed(capsys, "--device", "mps", "--causal", "no", "--forward")["rows"]
    assert row["forward"]["cpu"].keys() == {"ours", "theirs", "fastest", "ratio", "ratio_of_minima"}
    assert isinstance(row["forward"]["clone"], float)

    monkeypatch.setenv("ORCHARD_STORAGE", "direct")  # a mode that somebody has chosen is not compared
    out = lines(capsys, "--device", "mps", "--causal", "no", "--forward")
    assert "CPU" in out[4]
    assert any("Orchard's README promises 0.5 to 1 %" in line for line in out)
    assert max(map(len, out)) <= 110


def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setattr(clones, "_CODE", "raise SystemExit('no GPU')")
    with pytest.raises(clones.OrchardError, match="ORCHARD_STORAGE=clone failed:\nno GPU"):
        clones.times([], [], 1)


def test_the_cost_of_clones_is_reckoned_in_pytorchs_time():
    direct = Pair(ours=1.0, theirs=3.0, fastest=1.0, ratio=3.0, ratio_of_minima=3.0)
    cloned = Pair(2.2, 6.0, 2.2, 6.0 / 2.2, 6.0 / 2.2)  # at half the speed
    assert clones.cost(direct, cloned) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kv-heads", "3"), "--kv-heads must divide the 2 heads, got 3"),
        (("--mask", "bool", "--causal", "yes"), "say --causal no"),
        (("--mask", "triangular"), "must be of none, bool, bias"),
        (("--length", "0"), "from 1"),
        (("--forward", "--backward"), "not allowed"),
    ],
)
def test_wrong_usage_says_what_is_accepted(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*SMALL, *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_picture_needs_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert main([*SMALL, "--plot", "out.png"]) == 1
    assert "pip install 'orchard_jit[plot]'" in capsys.readouterr().err


def test_a_picture_is_drawn(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert main([*SMALL, "--length", "16,32", "--forward", "--plot", str(tmp_path / "bench.png")]) == 0
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_two_things_are_timed_in_turn(monkeypatch):
    monkeypatch.setattr(Stopwatch, "seconds", lambda self, work, repeats=1: work())
    called = []

    def work(name, seconds):
        return lambda: called.append(name) or seconds

    pair = compare(work("ours", 0.1), work("theirs", 0.3), rounds=3)
    assert called[-6:] == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (pair.ours, pair.theirs, pair.fastest) == (0.1, 0.3, 0.1)
    assert pair.ratio == pair.ratio_of_minima == pytest.approx(3.0)
