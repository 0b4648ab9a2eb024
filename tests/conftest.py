"""What all tests share: one cache of compiled kernels, which outlives the session."""

import hashlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import compilers  # noqa: E402

os.environ.setdefault("ORCHARD_JIT_CACHE_DIR", str(ROOT / ".pytest_cache" / "kernels"))
# Block sizes that somebody has tuned on this machine must not decide what is tested.
os.environ["ORCHARD_JIT_TUNED"] = str(ROOT / ".pytest_cache" / "no-tuned-blocks.json")
Path(os.environ["ORCHARD_JIT_CACHE_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)
# Compiled graphs call the operators by the schema that they were traced with.
_SCHEMA = hashlib.sha256((ROOT / "orchard_jit" / "operators.py").read_bytes()).hexdigest()[:12]
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(ROOT / ".pytest_cache" / f"inductor-{_SCHEMA}")
compilers.install(ROOT / ".pytest_cache" / "compilers")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores; before torch reads it

import pytest  # noqa: E402
import torch  # noqa: E402

DEVICES = os.environ.get("ORCHARD_TEST_DEVICES", "cpu,mps").split(",")
if sys.platform != "darwin" and "mps" in DEVICES:
    # Before anybody asks PyTorch about MPS: from here on there is a Mac, in software.
    from software_mac import apple, mps

    mps.install()
    # Most kernels run one small shape, for less time than the optimiser would take.
    os.environ.setdefault("SOFTWARE_MAC_OPTIMISATION", "0")
    os.environ["CXX"] = str(apple.compiler())


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder with nothing in it, for subprocesses and for the stores."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("ORCHARD_JIT_CACHE_DIR", str(cache))
    return cache


@pytest.fixture(params=DEVICES)
def device(request):
    """Every device that the conformance suite runs on."""
    return request.param


@pytest.fixture
def compiler_of_inductor():
    """CXX is that of the Mac in software, which takes g++'s flags but is called clang."""
    import torch._inductor.config

    compiler = "clang++" if sys.platform == "darwin" else "g++"
    with torch._inductor.config.patch({"cpp.cxx": (None, compiler)}):
        yield
