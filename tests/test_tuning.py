"""Tuning: what is tried, what is dropped, what is kept. No test depends on what is faster."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch

from orchard_jit import blocks, call, explain, tune
from orchard_jit.blocks.table import Table
from orchard_jit.cli import main
from orchard_jit.commands import plots
from orchard_jit.errors import BlocksError, CompileError, OrchardError
from orchard_jit.jit import progress
from orchard_jit.selection import select
from orchard_jit.timing import Stopwatch
from orchard_jit.tuning import candidates, race
from orchard_jit.tuning.result import Rejection, Result, Timing, Tuning

HEAD_DIM = 8
SHAPE = ("tune", "--shape", f"1,2,70,70,{HEAD_DIM}", "--budget", "100ms")


@pytest.fixture(autouse=True)
def tuned(tmp_path, monkeypatch):
    """The file that tuning writes; and two sizes to try, of which one is shipped."""
    monkeypatch.setattr(candidates, "_GRIDS", {"cpu": {"k": (96, 32)}, "metal": {"rows": (16, 8)}})
    monkeypatch.setattr(race, "_FINAL_ROUNDS", (2, 2))
    path = tmp_path / "settings" / "tuned.json"
    monkeypatch.setenv("ORCHARD_JIT_TUNED", str(path))
    return path


@pytest.fixture
def gains(monkeypatch):
    """Whether the best of a trial beats the default."""

    def decide(verdict):
        monkeypatch.setattr(race.Gain, "counts", verdict)

    return decide


def inputs(device="cpu", dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(1, 2, 70, HEAD_DIM, dtype=dtype).to(device) for _ in range(3)]


def variant(backend="cpu", kernel="forward", head_dim=HEAD_DIM):
    return select(backend=backend, kernel=kernel, dtype="float32", head_dim=head_dim, head_dim_v=head_dim)


def sizes(timings):
    return {tuple(dict(timing.variant.blocks).values()) for timing in timings}


def test_both_kernels_are_timed_in_both_sizes_and_the_best_are_kept(tuned, gains):
    gains(True)
    tuning = tune(*inputs(), causal=True, budget=0.1)
    assert [result.default.kernel for result in tuning.results] == ["forward", "backward"]
    assert [sizes(result.timings) for result in tuning.results] == [
        {(96, 256), (32, 256)},
        {(96, 128), (32, 128)},
    ]
    assert all(timing.seconds >= timing.fastest > 0 for result in tuning.results for timing in result.timings)
    assert tuning.blocks == {"forward": {"k": 32, "q": 256}, "backward": {"k": 32, "q": 128}}
    assert tuning.path == tuned
    entry = Table.read(tuned).entries[-1]
    assert entry["features"] == ["causal"]
    assert entry["head_dim"] == [HEAD_DIM, HEAD_DIM]
    assert entry["length"] == [65, 128]
    assert entry["blocks"] == {"k": 32, "q": 256}
    assert entry["measured"]["query"] == [1, 2, 70, HEAD_DIM]

    explanation = explain(*inputs(), causal=True)
    assert dict(explanation.forward.blocks)["k"] == dict(explanation.backward.blocks)["k"] == 32
    assert explanation.blocks == {"forward": "tuned", "backward": "tuned"}
    assert explain(*inputs()).blocks == {"forward": "shipped", "backward": "shipped"}

    gains(False)
    tuning = tune(*inputs(), causal=True, budget=0.1, passes=["forward"])
    assert "none of 1 is faster than the shipped k=96 q=256" in str(tuning)
    assert explain(*inputs(), causal=True).blocks == {"forward": "shipped", "backward": "tuned"}


def test_nothing_is_written_unless_it_is_to_be_kept_and_gains(tuned, gains):
    gains(True)
    assert tune(*inputs(), budget=0.1, passes=["forward"], keep=False).path is None
    gains(False)
    tune(*inputs(), budget=0.1, passes=["forward"])
    assert not tuned.exists()


def test_a_candidate_with_wrong_results_is_dropped_loudly(monkeypatch, gains):
    gains(True)
    forward = call.forward

    def wrong(arguments):
        out, lse = forward(arguments)
        return (out + 1e-4, lse) if '"k": 32' in arguments.blocks else (out, lse)

    monkeypatch.setattr(call, "forward", wrong)
    with pytest.warns(UserWarning, match=r"dropped .*k=32.*wrong results: off by .* \(limit 4.0e-06\)"):
        tuning = tune(*inputs(), budget=0.1, passes=["forward"])
    (result,) = tuning.results
    assert sizes(result.timings) == {(96, 256)}
    assert result.best is None
    assert "wrong results" in result.rejected[0].reason


def test_a_candidate_that_cannot_be_compiled_is_dropped_loudly(monkeypatch):
    load = candidates.library.load

    def broken(recipe):
        if recipe.spec["variant"]["blocks"]["k"] == 32:
            raise CompileError("no such instruction")
        return load(recipe)

    monkeypatch.setattr(candidates.library, "load", broken)
    with pytest.warns(UserWarning, match="dropped .*k=32.*no such instruction"):
        tuning = tune(*inputs(), budget=0.1, passes=["forward"])
    assert sizes(tuning.results[0].timings) == {(96, 256)}


def test_a_default_that_cannot_be_compiled_is_an_error(monkeypatch):
    def broken(recipe):
        raise CompileError("no such instruction")

    monkeypatch.setattr(candidates.library, "load", broken)
    with pytest.raises(OrchardError, match="default can't be built: no such instruction"):
        tune(*inputs(), budget=0.1)


def test_a_damaged_file_is_an_error_before_the_work(tuned, monkeypatch):
    tuned.parent.mkdir()
    tuned.write_text("{")
    monkeypatch.setattr(candidates.library, "load", None)
    with pytest.raises(BlocksError, match=str(tuned)):
        tune(*inputs())
    assert tuned.read_text() == "{"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"passes": ["sideways"]}, ValueError, "passes must be of forward, backward; got 'sideways'"),
        ({"causal": "sideways"}, ValueError, "causal must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        tune(*inputs(), **arguments)


def test_inputs_that_are_not_finite_are_refused():
    query, key, value = inputs()
    value[0, 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="whose attention is finite"):
        tune(query, key, value, budget=0.1)


def test_masks_biases_and_dropout_are_tuned_like_anything_else():
    options = {
        "bias": torch.randn(70, 70, requires_grad=True),
        "mask": torch.rand(70, 70) > 0.5,
        "dropout_p": 0.2,
    }
    options["mask"][5] = False  # a row that attends to nothing
    tuning = tune(*inputs(), budget=0.1, keep=False, **options)
    assert not any(result.rejected for result in tuning.results)
    assert "bias_grad" in tuning.results[1].default.features


def test_on_metal_each_kernel_is_varied_for_itself_and_the_best_meet():
    tuning = tune(*inputs("mps", torch.float16), budget=60, passes=["backward"], keep=False)
    (result,) = tuning.results
    default = dict(result.default.blocks)
    rows = {(dict(t.variant.blocks)["dq_rows"], dict(t.variant.blocks)["dkv_rows"]) for t in result.timings}
    alone = {(default["dq_rows"], default["dkv_rows"]), (8, default["dkv_rows"]), (default["dq_rows"], 8)}
    assert alone <= rows <= alone | {(8, 8)}
    assert not result.rejected


def test_neighbours_fit_and_come_the_nearest_first(monkeypatch):
    monkeypatch.undo()
    for backend, kernel in (("cpu", "backward"), ("metal", "forward"), ("metal", "backward")):
        default = variant(backend, kernel, 64)
        found = list(candidates.neighbours(default))
        assert len(found) == len(set(found)) > 20
        assert default not in found
        distances = [candidates._distance(default, other) for other in found]
        assert distances == sorted(distances)
        groups = candidates.groups(default)
        assert all(
            any(candidates.differing(default, other) <= {*names} for names in groups) for other in found
        )


def test_what_the_budget_does_not_suffice_for_is_not_built(monkeypatch):
    loaded = []
    monkeypatch.setattr(candidates.library, "find", lambda recipe: None)
    monkeypatch.setattr(candidates.library, "load", lambda recipe: loaded.append(recipe))
    variants = [variant().with_blocks({"q": 64, "k": k}) for k in range(1, 9)]
    ready, rejected = candidates.built(variants, time.monotonic() - 1, lambda done: None)
    assert ready == variants[:2]
    assert rejected == []
    assert len(loaded) == 2


@pytest.mark.parametrize(
    ("actual", "expected", "holds"),
    [
        ([1.0, -math.inf], [1.0, -math.inf], True),
        ([1.0 + 1e-6, 2.0], [1.0, 2.0], True),
        ([1.0 + 1e-4, 2.0], [1.0, 2.0], False),
        ([math.nan, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [1.0, -math.inf], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([1e-30, 0.0], [0.0, 0.0], False),
    ],
)
def test_results_must_be_those_of_the_default_but_for_rounding(actual, expected, holds):
    assert (candidates.fault([torch.tensor(actual)], [torch.tensor(expected)]) is None) == holds


@pytest.fixture
def fixed_times(monkeypatch):
    """Work takes as long as it returns."""
    monkeypatch.setattr(Stopwatch, "seconds", lambda self, work, repeats=1: work())


def runner(seconds):
    return race.Runner(variant(), lambda: seconds)


def test_a_race_is_won_by_the_fastest(fixed_times):
    others = [runner(seconds) for seconds in (3.0, 0.5, 2.0, 1.1, 4.0, 0.8, 5.0, 6.0)]
    trial = race.Race(runner(1.0), others, "cpu")
    finalists = trial.heats(1e9, lambda left: None)
    assert [each.seconds for each in finalists] == [0.5, 0.8, 1.1]
    best, gain = trial.final(finalists, 0.0)
    assert best is others[1]
    assert (gain.ratio, gain.noise, gain.counts) == (2.0, 0.0, True)
    assert len(others[7].times) < len(best.times)


def test_a_race_of_one_has_no_winner(fixed_times):
    trial = race.Race(runner(1.0), [], "cpu")
    assert trial.heats(0.0, lambda left: None) == []
    assert trial.final([], 0.0) is None
    assert trial.default.seconds == 1.0


@pytest.mark.parametrize(
    ("ratio", "noise", "of_minima", "counts"),
    [(1.5, 0.1, 1.4, True), (1.01, 0.0, 1.01, False), (1.1, 0.2, 1.1, False), (1.5, 0.1, 1.0, False)],
)
def test_a_gain_counts_beyond_the_noise(ratio, noise, of_minima, counts):
    assert race.Gain(ratio, noise, of_minima).counts == counts


def canned(kernel="forward", backend="cpu"):
    default, other, wrong = (variant(backend, kernel).with_blocks({"q": q, "k": 96}) for q in (256, 128, 64))
    timings = (Timing(other, 1e-3, 0.9e-3, 1.25, 9), Timing(default, 1.25e-3, 1.2e-3, 1.0, 9))
    rejected = (Rejection(wrong, "wrong results: off by 1\nmore"),)
    return Result(default, timings, rejected, 3, timings[0] if kernel == "forward" else None, {})


@pytest.fixture
def fake_tune(monkeypatch, tmp_path):
    asked = {}

    def fake(query, key, value, **options):
        asked.update(query=query, key=key, value=value, **options)
        return Tuning(
            (canned("forward"), canned("backward")), tmp_path / "tuned.json" if options["keep"] else None
        )

    monkeypatch.setattr("orchard_jit.commands.tune.tune", fake)
    return asked


def test_the_command_prints_a_table(fake_tune, capsys):
    assert (
        main(["tune", "--shape", "2,4,9,17,8", "--kv-heads", "2", "--dtype", "bfloat16", "--budget", "2min"])
        == 0
    )
    out = capsys.readouterr().out
    assert out.splitlines()[2].split() == ["k", "q", "median", "fastest", "ratio", "rounds"]
    assert out.splitlines()[3].split() == ["96", "128", "1.00", "ms", "0.900", "ms", "1.250", "9", "best"]
    assert "✗ k=96 q=64: wrong results: off by 1\n" in out
    assert "✓ k=96 q=128: 1.25 times as fast as the shipped k=96 q=256" in out
    assert "the shipped sizes stay: none of 1 candidate gains more than the noise, 3 left" in out
    assert "kept in" in out
    assert max(map(len, out.splitlines())) <= 100
    assert fake_tune["query"].shape == (2, 4, 9, 8)
    assert fake_tune["key"].shape == fake_tune["value"].shape == (2, 2, 17, 8)
    assert fake_tune["query"].dtype == torch.bfloat16
    assert (fake_tune["budget"], fake_tune["causal"]) == (120.0, False)


def test_off_a_terminal_it_says_one_line_while_it_works(monkeypatch, tmp_path, capsys):
    def fake(*_, **__):
        progress.say("compiling a candidate")
        return Tuning((), None)

    monkeypatch.setattr("orchard_jit.commands.tune.tune", fake)
    assert main([*SHAPE, "--budget", "30s"]) == 0
    assert capsys.readouterr().err == "orchard_jit: tuning for 30 s\n"


def test_the_command_prints_json(fake_tune, capsys):
    assert main([*SHAPE, "--causal", "--kernel", "forward", "--dry-run", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    forward, backward = printed["kernels"]
    assert printed["path"] is None
    assert forward["best"]["blocks"] == {"k": 96, "q": 128}
    assert forward["candidates"][1]["ratio"] == 1.0
    assert forward["rejected"] == [{"blocks": {"k": 96, "q": 64}, "reason": "wrong results: off by 1\nmore"}]
    assert backward["best"] is None
    assert (fake_tune["passes"], fake_tune["causal"], fake_tune["keep"]) == (["forward"], "upper_left", False)


def test_the_command_tunes(tuned, capsys, gains):
    gains(True)
    assert main([*SHAPE, "--kernel", "forward"]) == 0
    assert f"kept in {tuned}" in capsys.readouterr().out
    assert len(Table.read(tuned).entries) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "1,2,3"), "must be B,H,Sq,Sk,D"),
        (("--shape", "1,2,70,70,600"), "1 to 512"),
        (("--shape", "1,2,70,70,8", "--kv-heads", "3"), "--kv-heads must divide the 2 heads"),
        (("--shape", "1,2,70,70,8", "--budget", "soon"), "must be a time"),
        (("--shape", "1,2,70,70,8", "--budget", "0s"), "must be a time"),
        (("--shape", "1,2,70,70,8", "--kernel", "decode"), "must be of forward, backward"),
        ((), "--shape"),
    ],
)
def test_wrong_usage_says_what_is_accepted(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tune", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_picture_needs_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    assert main([*SHAPE, "--plot", "out.png"]) == 1
    assert "pip install 'orchard_jit[plot]'" in capsys.readouterr().err


def test_a_picture_is_drawn(fake_tune, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(candidates, "_GRIDS", {"cpu": {"q": (64,), "k": (96,)}})
    assert main([*SHAPE, "--plot", str(tmp_path / "map.png")]) == 0
    monkeypatch.setattr(candidates, "_GRIDS", {"cpu": {"q": (64,)}})
    assert main([*SHAPE, "--plot", str(tmp_path / "bars.svg")]) == 0
    assert (tmp_path / "map.png").stat().st_size > 10_000
    assert (tmp_path / "bars.svg").stat().st_size > 10_000
    assert main([*SHAPE, "--plot", str(tmp_path / "map.doc")]) == 1
    assert "map.doc" in capsys.readouterr().err


def test_a_bar_is_drawn_on_a_terminal_alone_and_silences_lines(monkeypatch, capsys):
    with progress.bar() as draw:
        draw("timing", 0.5)
        progress.say("a line")
    assert capsys.readouterr().err == "orchard_jit: a line\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.bar() as draw:
        draw("timing", 0.5)
        progress.say("a line")
    assert "━━━━━━━━━━━━────────────  timing" in (drawn := capsys.readouterr().err)
    assert "a line" not in drawn
    progress.say("a line")
    assert capsys.readouterr().err == "orchard_jit: a line\n"


def test_the_shipped_sizes_are_what_a_tuned_machine_is_compared_with(tuned, gains):
    gains(True)
    tune(*inputs(), budget=0.1, passes=["forward"])
    (result,) = tune(*inputs(), budget=0.1, passes=["forward"]).results
    assert dict(result.default.blocks) == blocks.shipped(result.default)
    assert len(Table.read(tuned).entries) == 1
