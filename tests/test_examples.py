"""The examples do what they say: called as their readers call them, in small settings."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from importlib.util import find_spec

import pytest

from .conftest import ROOT

EXAMPLES = ROOT / "examples"
PNG = b"\x89PNG\r\n\x1a\n"
ONE_LAYER = ["--layers", "1", "--heads", "1"]
TINY_GPT = [*ONE_LAYER, "--steps", "12", "--length", "64", "--batch", "4", "--write", "20"]


@pytest.fixture
def run(tmp_path):
    """What an example prints when it is called from an empty folder."""

    def printed(*command, program=sys.executable):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
        environment.pop("CXX", None)  # a reader has no Mac in software
        finished = subprocess.run(
            [program, *map(str, command)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    return printed


def numbers(pattern, text):
    """The groups of the first match."""
    match = re.search(pattern, text)
    assert match, text
    return [float(number) for number in match.groups()]


def assert_trained(printed):
    first, last = numbers(r"loss ([\d.]+) -> ([\d.]+)", printed)
    (apart,) = numbers(r"curves at most (\S+) apart", printed)
    assert last < first - 0.5
    assert apart < 1e-4


def assert_drawn(path, printed):
    if find_spec("matplotlib"):
        assert path.read_bytes().startswith(PNG)
        assert f"drawn in {path.name}" in printed
    else:
        assert "not drawn: pip install 'orchard_jit[plot]'" in printed


def test_all_examples_are_listed():
    listed = re.findall(r"\]\((\S+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert {*listed} == {path.name for path in EXAMPLES.glob("*.py")} | {"deploy/deploy.sh"}


class TestTrainGpt:
    def test_both_losses_fall_together_and_are_drawn(self, run, tmp_path):
        printed = run(EXAMPLES / "train_gpt.py", *TINY_GPT)
        assert_trained(printed)
        assert_drawn(tmp_path / "train_gpt.png", printed)

    def test_on_any_device_and_a_text_of_ones_own(self, device, tmp_path, monkeypatch, capsys):
        text = tmp_path / "mine.txt"
        text.write_text("na" * 1000)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["train_gpt.py", *TINY_GPT, "--device", device, "--text", str(text)])
        runpy.run_path(str(EXAMPLES / "train_gpt.py"), run_name="__main__")
        printed = capsys.readouterr().out
        assert f"2000 bytes of text, on {device}" in printed
        assert_trained(printed)


class TestFinetuneHuggingFace:
    @pytest.fixture(autouse=True)
    def _needs_transformers(self):
        pytest.importorskip("transformers")

    def losses(self, printed):
        return [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]

    def test_it_learns_as_on_pytorchs_attention_and_reports_its_calls(self, run):
        tiny = [EXAMPLES / "finetune_hugging_face.py", "--steps", "6", "--batch", "4"]
        printed = run(*tiny)
        losses = self.losses(printed)
        assert losses[-1] < losses[0] - 0.5
        assert losses == pytest.approx(self.losses(run(*tiny, "--attention", "sdpa")), abs=1e-3)
        (calls,) = numbers(r"(\d+) calls, 0 of them by PyTorch's own", printed)
        assert calls >= 6 * 4
        assert re.search(r"24  cpu-\S+-backward-f32-d32-causal-mask", printed)


class TestScoreFunction:
    def test_flex_attention_and_float64_say_the_same(self, run):
        printed = run(EXAMPLES / "score_function.py", "--length", "200", "--documents", "3")
        apart = numbers(r"out +(\S+) from", printed)
        for name in ("query", "key", "value"):
            apart += numbers(rf"gradient +(\S+) of {name}", printed)
        assert max(apart) < 1e-5
        assert "did you mean strength?" in printed


class TestBestBlocks:
    def test_kernels_are_explained_tuned_and_drawn(self, run, tmp_path):
        printed = run(EXAMPLES / "best_blocks.py", "--shape", "1,2,70,8", "--budget", "2")
        assert re.search(r"Now:\n\nforward   cpu-\S+-forward-f32-d8 \[k=\d+ q=\d+\]", printed)
        assert re.search(r"Found:\n\ncpu-\S+-forward-f32-d8: .* the shipped k=", printed)
        assert min(numbers(r"([\d.]+) ms before, ([\d.]+) ms with them", printed)) > 0
        assert_drawn(tmp_path / "best_blocks.png", printed)


class TestDeploy:
    def test_the_program_runs_where_only_its_kernels_are(self, run):
        printed = run(EXAMPLES / "deploy" / "deploy.sh", program="bash")
        yours, built, bare, imported, installed = re.split(r"\n== .*\n", printed)[1:]
        right = "attention and its gradients are right"
        assert right in yours
        assert 'kernel = ["forward", "backward"]' in yours
        assert "3 libraries: 3 built" in built
        assert right not in bare
        assert "MissingVariantError" in bare
        assert "3 libraries: 3 imported" in imported
        assert imported.strip().endswith(right)
        assert installed.strip().endswith(right)


class TestLongContext:
    def test_parts_and_the_whole_have_the_same_loss(self, run):
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
        tiny = [*ONE_LAYER, "--length", "256", "--steps", "3", "--check"]
        printed = run(*torchrun, EXAMPLES / "long_context.py", *tiny)
        losses = [float(loss) for loss in re.findall(r"step +\d+ +loss ([\d.]+)", printed)]
        assert losses[-1] < losses[0] - 0.3
        in_parts, in_one = numbers(r"loss ([\d.]+) in 2 parts, ([\d.]+) in one piece", printed)
        assert in_parts == pytest.approx(in_one, abs=1e-4)
