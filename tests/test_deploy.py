"""Kernels go to a machine that can compile nothing, and none is ever loaded where it does not belong.

That machine is a sandbox: no compiler and no ninja, an empty PATH, no program may be started, every folder
read-only. Where the tests run as root, as in a container, it also has an unprivileged user and, if the system
lets it, no network and a file system that is mounted read-only; the sandbox itself checks what it has.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import torch

from orchard_jit.errors import MissingVariantError
from orchard_jit.jit import library, recipe
from orchard_jit.jit.store import Store
from orchard_jit.selection import select

from .conftest import ROOT
from .jit.tiny import publish
from .test_prebuild import python

NOBODY = "65534"
TRAIN = """
    import os, shutil, socket, subprocess, sys
    sys.modules["ninja"] = None
    subprocess.Popen = os.system = os.fork = os.posix_spawn = None
    assert not any(map(shutil.which, ("c++", "g++", "clang++", "cc", "ninja", "sh")))
    for folder in sys.argv[2].split(os.pathsep):
        try:
            open(os.path.join(folder, "written"), "w")
        except OSError:
            continue
        raise SystemExit(f"{folder} can be written")
    if sys.argv[1] != "kept":
        assert os.geteuid() == 65534, os.geteuid()
    if sys.argv[1] == "unshared":
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=1)
        except OSError as error:
            assert error.errno == 101, error  # the network is unreachable

    import torch, orchard_jit
    q, k, v = (torch.randn(1, 2, 33, 24, requires_grad=True) for _ in range(3))
    out = orchard_jit.flash_attention(q, k, v)
    grads = torch.autograd.grad(out.square().sum(), (q, k, v))
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    expected = torch.autograd.grad(theirs.square().sum(), (q, k, v))
    torch.testing.assert_close((out, *grads), (theirs, *expected))
    print("right")
"""


def answers(*command):
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def sandbox(folder):
    """(what it has, the words before a command) of the strictest one that this system allows."""
    if os.geteuid() != 0:
        return "kept", []  # the user of these tests, who is unprivileged already
    # A user who can write nothing at all, but may find Python below root's home, if it is there.
    setpriv = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reading = "-all,+dac_read_search"
    capable = [f"--bounding-set={reading}", f"--inh-caps={reading}", f"--ambient-caps={reading}"]
    if answers(*setpriv, *capable, sys.executable, "-c", "import torch"):
        setpriv += capable
    setpriv[0] = shutil.which("setpriv")
    read_only = (
        f"mount -o remount,ro,bind / && mount --bind {folder} {folder} && mount -o remount,ro,bind {folder}"
    )
    unshare = [shutil.which("unshare"), "--mount", "--net", shutil.which("sh"), "-c"]
    script = read_only.replace("mount ", f"{shutil.which('mount')} ") + ' && exec "$@"'
    if answers(*unshare, script, "sh", shutil.which("true")):
        return "unshared", [*unshare, script, "sh", *setpriv]
    return "setuid", setpriv


@pytest.fixture(scope="module")
def elsewhere():
    """A folder that any user may read, away from pytest's own, which are private."""
    folder = Path(tempfile.mkdtemp(prefix="orchard-deploy-"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def compiled():
    """Names of what is compiled for the sandbox, by the system's compiler, into the cache of all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CXX", raising=False)
        words = ["--head-dim", "24", "--dtype", "float32", "--causal", "no", "--json"]
        finished = python("prebuild", *words)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        yield [entry["key"] for entry in json.loads(finished.stdout)["libraries"]]


def command(*words, **environment):
    finished = python(*words, **environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def prebuilt(compiled, elsewhere):
    """What the machine is given, by `export` and `import`."""
    command("export", str(elsewhere / "kernels.tar.gz"), *compiled)
    command("import", str(elsewhere / "kernels.tar.gz"), "--into", str(elsewhere / "prebuilt"))
    return {"ORCHARD_JIT_PREBUILT_DIRS": str(elsewhere / "prebuilt"), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def installed(compiled, elsewhere):
    """What the machine is given, by `wheel` and pip; and no variable says where it is."""
    command("wheel", *compiled, "--out", str(elsewhere))
    (wheel,) = elsewhere.glob("orchard_jit_cache-*.whl")
    target = elsewhere / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(target)))}


@pytest.mark.parametrize("given", ["prebuilt", "installed"])
def test_forward_and_backward_run_where_nothing_can_be_compiled_or_written(given, elsewhere, request):
    environment = request.getfixturevalue(given)
    home = elsewhere / f"home-{given}"
    home.mkdir()
    for folder in (elsewhere, *(path for path in elsewhere.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    kind, words = sandbox(elsewhere)
    closed = [
        str(elsewhere / name) for name in ("", home.name, *(["prebuilt"] if given == "prebuilt" else []))
    ]
    run = subprocess.run(
        [*words, sys.executable, "-B", "-c", textwrap.dedent(TRAIN), kind, os.pathsep.join(closed)],
        env={"PATH": "", "HOME": str(home), "TMPDIR": str(home), "OMP_NUM_THREADS": "1", **environment},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout.strip(), run.stderr, run.returncode) == ("right", "", 0)
    elsewhere.chmod(0o755)


def test_root_gets_the_sandbox_with_another_user():
    """So that nobody takes the test above for more than it is."""
    assert (sandbox(Path("/tmp"))[0] == "kept") == (os.geteuid() != 0)


def test_the_wheel_satisfies_pip(installed, elsewhere):
    names = [path.name for path in (elsewhere / "site-packages").iterdir()]
    (about,) = [name for name in names if name.endswith(".dist-info")]
    assert sorted(names) == ["orchard_jit_cache", about]
    check = subprocess.run(
        [sys.executable, "-m", "pip", "check"],
        env={**os.environ, **installed},
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in check.stdout.splitlines() if line.startswith("orchard-jit-cache")]
    assert not [
        line for line in complaints if "is not installed" not in line
    ]  # in a checkout, orchard_jit is not
    wheel = next(elsewhere.glob("*.whl"))
    again = command("wheel", "--out", str(elsewhere / "again"), *_keys(elsewhere), "--json")
    assert Path(json.loads(again)["wheel"]).read_bytes() == wheel.read_bytes()


def _keys(elsewhere):
    return [path.parent.name for path in (elsewhere / "site-packages").rglob("manifest.json")]


@pytest.fixture
def store(empty_cache):
    return Store(empty_cache, writable=True)


def stored(store, made):
    """An entry of that recipe, whose library would end the process that loads it: it is none."""
    return publish(store, b"not to be loaded", made.key, made.shelf, title=made.title)


def kernel(**options):
    return recipe.for_variant(
        select(backend="cpu", kernel="forward", dtype="float32", head_dim=64, head_dim_v=64, **options)
    )


def refuses(made, monkeypatch):
    """What `load` says where it may not compile."""
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setenv("ORCHARD_JIT_OFFLINE", "1")
    with pytest.raises(MissingVariantError) as refused:
        library.load(made)
    return str(refused.value)


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("here", "arch", "others"),
    [("DEFAULT", "x86-64", ["x86-64-v3", "x86-64-v4"]), ("AVX2", "x86-64-v3", ["x86-64-v4", "x86-64"])],
)
def test_a_kernel_for_another_instruction_set_is_not_loaded(here, arch, others, store, x86, monkeypatch):
    for other in others:
        stored(store, kernel(arch=other))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    wanted = kernel()
    assert library.find(wanted) is None
    assert f"--arch {arch}" in refuses(wanted, monkeypatch)


def test_a_kernel_for_another_instruction_set_is_not_loaded_from_this_ones_place(store, x86, monkeypatch):
    better, wanted = stored(store, kernel(arch="x86-64-v4")), kernel(arch="x86-64-v3")
    better.directory.rename(better.directory.with_name(wanted.key))
    with pytest.warns(UserWarning, match="set aside"):
        refuses(wanted, monkeypatch)


@pytest.mark.parametrize(("system", "machine"), [("darwin", "x86_64"), ("linux", "aarch64")])
def test_a_kernel_for_another_system_is_not_loaded(system, machine, store, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    stored(store, kernel(arch="x86-64"))
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert library.find(kernel(arch="x86-64" if machine == "x86_64" else "arm64")) is None


def test_operators_for_another_abi_are_not_loaded(store, monkeypatch):
    stored(store, recipe.for_binding())
    assert library.find(recipe.for_binding())
    monkeypatch.setattr(torch, "compiled_with_cxx11_abi", lambda: not torch._C._GLIBCXX_USE_CXX11_ABI)
    assert library.find(recipe.for_binding()) is None


def test_another_torch_keeps_the_kernels_and_rebuilds_the_operators_alone(store, monkeypatch):
    stored(store, recipe.for_binding())
    stored(store, kernel())
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert library.find(kernel())
    assert library.find(recipe.for_binding()) is None
    assert refuses(recipe.for_binding(), monkeypatch).endswith("orchard-jit prebuild --operators")
