"""`orchard-jit smoke`: it passes on good kernels, and each step can fall short."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from orchard_jit import flash_attention
from orchard_jit.cli import main
from orchard_jit.commands import findings, machine, numerics, smoke, steps, training
from orchard_jit.errors import ToolchainError
from orchard_jit.jit.recipe import for_variant


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The same steps on fewer kernels and a shorter training."""
    monkeypatch.setattr(training, "STEPS", 16)
    monkeypatch.setattr(
        numerics, "FORWARD", [case for case in numerics.FORWARD if case.dtype == torch.float32]
    )
    monkeypatch.setattr(
        numerics, "BACKWARD", [case for case in numerics.BACKWARD if case.dtype == torch.float32]
    )


def sdpa(query, key, value):
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def no_tools():
    raise ToolchainError("no C++ compiler")


def test_all_steps_pass(capsys, monkeypatch):
    assert main(["smoke"]) == 0
    out = capsys.readouterr().out
    for name in smoke.NEEDS:
        assert f"✓ {name}" in out
    assert "all 7 steps" in out
    assert "x as fast" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\033" not in out
    # Now that everything is compiled, a machine without any tools passes too.
    monkeypatch.setattr(steps.build, "check_toolchain", no_tools)
    finding = steps.Steps("cpu").toolchain()
    assert finding.fault is None
    assert "none is needed" in finding.text


def test_without_a_compiler_nothing_else_is_run(capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["smoke", "--clean", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    states = {step["name"]: step["state"] for step in report["steps"]}
    assert not report["passed"]
    assert states.pop("toolchain") == "failed"
    assert states.pop("render") == "ok"
    assert set(states.values()) == {"not run"}
    assert "no-such-compiler" in report["steps"][0]["fault"]


def test_what_cannot_be_compiled_stops_the_rest(capsys, monkeypatch):
    # The operators stay out of it: this process may have loaded them already.
    monkeypatch.setattr(steps, "for_binding", lambda: for_variant(numerics.variants("cpu")[0]))
    monkeypatch.setenv("ORCHARD_JIT_CXXFLAGS", "-include not-there.h")
    assert main(["smoke", "--clean"]) == 1
    out = capsys.readouterr().out
    assert "✓ toolchain" in out
    assert "✗ build" in out
    assert "not-there.h" in out
    log = Path(re.search(r"full log:\s+(\S+)", out).group(1))
    assert log.exists()
    shutil.rmtree(next(folder for folder in log.parents if folder.name.startswith("orchard_jit-")))
    assert "– load       needs build" in out
    assert "– training   needs load" in out
    assert "✗ build fell short" in out


def test_wrong_outputs_fall_short(monkeypatch):
    def slightly_wrong(*arguments, **options):
        return flash_attention(*arguments, **options) * 1.00001

    monkeypatch.setattr(numerics, "flash_attention", slightly_wrong)
    finding = steps.Steps("cpu").numerics()
    assert "float32 against float64" in finding.fault


def test_outputs_that_change_from_run_to_run_fall_short(monkeypatch):
    calls = iter(range(1000))

    def restless(*arguments, **options):
        return flash_attention(*arguments, **options) + 1e-9 * next(calls)

    monkeypatch.setattr(numerics, "flash_attention", restless)
    assert "against repeated" in steps.Steps("cpu").numerics().fault


def test_nan_falls_short(monkeypatch):
    monkeypatch.setattr(numerics, "flash_attention", lambda query, *_, **__: query * math.nan)
    assert steps.Steps("cpu").numerics().fault


def test_wrong_gradients_fall_short(monkeypatch):
    def without_scale_in_backward(query, key, value, **options):
        return flash_attention(query * 2 - query.detach(), key, value, **options)

    monkeypatch.setattr(numerics, "flash_attention", without_scale_in_backward)
    monkeypatch.setattr(numerics, "gradcheck", lambda: None)
    assert "query" in steps.Steps("cpu").gradients().fault


def test_an_error_without_words_falls_short(capsys, monkeypatch):
    def assert_nothing(device):
        raise AssertionError

    monkeypatch.setattr(numerics, "forward_errors", assert_nothing)
    monkeypatch.setattr(smoke, "NEEDS", {"numerics": ()})
    assert main(["smoke"]) == 1
    assert "AssertionError" in capsys.readouterr().out


def test_gradcheck_is_part_of_the_gradients(capsys, monkeypatch):
    def refuse():
        raise RuntimeError("Jacobian mismatch")

    monkeypatch.setattr(numerics, "gradcheck", refuse)
    monkeypatch.setattr(smoke, "NEEDS", {"gradients": ()})
    assert main(["smoke"]) == 1
    assert "Jacobian mismatch" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        lambda query, key, value, **_: flash_attention(query, key, value),
        lambda query, key, value, **_: flash_attention(query, key.detach(), value, causal=True),
    ],
    ids=["no mask", "no gradient of key"],
)
def test_a_wrong_attention_shows_in_the_training(wrong, monkeypatch):
    monkeypatch.setattr(steps, "flash_attention", wrong)
    assert "differ" in steps.Steps("cpu").training().fault


def test_training_is_reproducible_and_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    first, second = training.train((sdpa, sdpa), "cpu", 3, lambda step: None)
    assert first.losses == second.losses
    assert torch.equal(state, torch.get_rng_state())
    assert math.log(training.BYTES) * 0.9 < first.losses[0] < math.log(training.BYTES) * 1.1


def test_a_loss_that_does_not_fall_falls_short():
    flat = training.Run([5.5] * 10, 1.0)
    assert "must fall" in findings.of_training(flat, flat).fault
    broken = training.Run([5.5, math.nan, *[2.0] * 8], 1.0)
    falling = training.Run([5.5, 4.0, *[2.0] * 8], 1.0)
    assert "differ" in findings.of_training(falling, broken).fault
    assert findings.of_training(falling, falling).fault is None


def test_mps_that_is_not_there_is_one_clean_message(capsys, monkeypatch):
    monkeypatch.setattr(machine, "mps_fault", lambda: "no GPU")
    assert main(["smoke", "--device", "mps"]) == 1
    assert capsys.readouterr().err == "orchard-jit: --device mps: no GPU\n"
