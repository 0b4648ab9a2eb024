"""What is shipped: a wheel holds the templates and works on its own."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest

from .conftest import ROOT


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The wheel's contents; what an installer would put into site-packages."""
    hatchling = (
        pytest.importorskip("hatchling.build") if "CI" not in os.environ else __import__("hatchling.build")
    )
    assert hatchling
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_every_template_and_no_tests(unpacked):
    shipped = {
        p.relative_to(unpacked / "orchard_jit" / "templates")
        for p in unpacked.rglob("templates/**/*")
        if p.is_file()
    }
    assert shipped == {
        p.relative_to(ROOT / "templates") for p in (ROOT / "templates").rglob("*") if p.is_file()
    }
    assert {p.name for p in unpacked.iterdir() if p.suffix != ".dist-info"} == {"orchard_jit"}
    tables = (unpacked / "orchard_jit" / "blocks").glob("*.json")
    assert {p.name for p in tables} == {"cpu.json", "metal.json"}
    assert (unpacked / "orchard_jit" / "py.typed").is_file()  # type checkers may read our annotations


def test_the_wheel_works_without_the_checkout(unpacked, tmp_path):
    code = (
        "import torch, orchard_jit; q = torch.randn(1, 2, 9, 64, requires_grad=True);"
        "orchard_jit.flash_attention(q, q, q).sum().backward();"
        "print(orchard_jit.__file__, q.grad.isfinite().all())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(str(unpacked))
    assert "tensor(True)" in run.stdout
