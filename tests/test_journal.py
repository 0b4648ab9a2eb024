"""The log of kernel calls and the profile of their tensors: when asked for, and into files of one's own."""

from __future__ import annotations

import os
import re
import stat

import pytest

from orchard_jit.jit import library, recipe

from .jit.test_library import finish, python

ATTENTION = """
    import os
    import tests.conftest, torch, orchard_jit
    from orchard_jit.call import Arguments

    def attention(device):
        q = torch.randn(1, 2, 9, 16, device=device)
        out, lse = torch.ops.orchard_jit.forward(q, q, q)
        torch.ops.orchard_jit.backward(torch.ones_like(out), None, *Arguments(q, q, q), out, lse, False)
"""


def run(code, **environment):
    return finish(python(ATTENTION + code, **environment))[0]


@pytest.mark.parametrize("variable", ("ORCHARD_DEBUG_FLASH_ATN", "ORCHARD_DEBUG_FLASHATN"))
def test_every_call_is_noted(variable, tmp_path):
    log = tmp_path / "calls.log"
    code = """
    os.umask(0)
    attention("cpu")
    attention("mps")
    """
    run(code, **{variable: "1", "ORCHARD_DEBUG_FLASH_ATN_LOG": str(log)})
    assert log.read_text().splitlines() == [
        "[flashattn.cpp] FWD call=1",
        "[flashattn.cpp] BWD call=1",
        "[flashattn.mm] FWD call=2",
        "[flashattn.mm] BWD call=2",
    ]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


LINE = re.compile(
    r"(?P<role>\w+) shape=(?P<shape>[\dx]+) strides=(?P<strides>[\dx]+) dtype=(?P<dtype>\S+) "
    r"device=(?P<device>\S+) storage=(?P<storage>\w+) bytes=(?P<bytes>\d+)"
)


def test_every_tensor_is_profiled(tmp_path):
    log = tmp_path / "tensors.log"
    code = """
    os.umask(0)
    for device, mode in (("cpu", ""), ("mps", "private"), ("mps", "shared")):
        os.environ["SOFTWARE_MAC_STORAGE"] = mode
        attention(device)
    """
    run(code, ORCHARD_TENSOR_PROFILE="1", ORCHARD_TENSOR_PROFILE_LOG=str(log))
    lines = [LINE.fullmatch(line).groupdict() for line in log.read_text().splitlines()]
    forward = ["query", "key", "value", "out", "lse"]
    backward = [*forward, "grad_out", "grad_query", "grad_key", "grad_value"]
    assert [line["role"] for line in lines] == 3 * [*forward, *backward]
    for line in lines:
        is_lse = line["role"] == "lse"
        assert line["shape"] == ("1x2x9" if is_lse else "1x2x9x16")
        assert line["strides"] == ("18x9x1" if is_lse else "288x144x16x1")
        assert line["bytes"] == ("72" if is_lse else "1152")
        assert line["dtype"].startswith("float")
    places = [(line["device"].split(":")[0], line["storage"]) for line in lines[:: len(forward + backward)]]
    assert places == [("cpu", "host"), ("mps", "private"), ("mps", "shared")]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.fixture
def planted(tmp_path):
    """What somebody else may have put where the log should be, by the reason for which it is refused."""
    (tmp_path / "other").write_text("mine")
    (tmp_path / "link").symlink_to("other")
    (tmp_path / "hard link").hardlink_to(tmp_path / "other")
    (tmp_path / "directory").mkdir()
    places = {"symbolic link": "link", "hard links": "hard link", "directory": "directory"}
    if os.geteuid() == 0:
        (tmp_path / "foreign").write_text("mine")
        os.chown(tmp_path / "foreign", 65534, 65534)
        places["belongs to another user"] = "foreign"
    return {reason: tmp_path / name for reason, name in places.items()}


def test_what_somebody_else_put_there_is_left_alone(planted, tmp_path):
    code = f"""
    for path in {[str(path) for path in planted.values()]!r}:
        os.environ["ORCHARD_TENSOR_PROFILE_LOG"] = path
        try:
            attention("cpu")
        except RuntimeError as error:
            print(error)
    os.environ["ORCHARD_TENSOR_PROFILE_LOG"] = {str(tmp_path / "good")!r}
    attention("cpu")
    """
    lines = run(code, ORCHARD_TENSOR_PROFILE="1").splitlines()
    for line, (reason, path) in zip(lines, planted.items(), strict=True):
        assert f"will not write to {path}: " in line
        assert reason in line.lower()
        assert line.endswith("name another file in ORCHARD_TENSOR_PROFILE_LOG")
    assert (tmp_path / "other").read_text() == "mine"
    assert (tmp_path / "good").read_text()


def test_off_means_off(tmp_path):
    paths = [tmp_path / "calls.log", tmp_path / "tensors.log"]
    run(
        '    attention("cpu")',
        ORCHARD_DEBUG_FLASH_ATN="0",
        ORCHARD_DEBUG_FLASHATN="",
        ORCHARD_TENSOR_PROFILE="0",
        ORCHARD_DEBUG_FLASH_ATN_LOG=str(paths[0]),
        ORCHARD_TENSOR_PROFILE_LOG=str(paths[1]),
    )
    assert not any(path.exists() for path in paths)


def test_default_paths():
    """Read from the library: a test must not write to places that all users share."""
    operators = recipe.for_binding()
    library.load(operators)
    content = library.find(operators).library.read_bytes()
    assert b"/tmp/flashattn_kernel_calls.log\0" in content
    assert b"/tmp/orchard_tensor_profile.log\0" in content
