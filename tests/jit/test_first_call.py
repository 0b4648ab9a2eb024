"""The first call of a process: what it compiles, says, and never does."""

from __future__ import annotations

import textwrap

import pytest

from .tiny import finish, python


def test_import_loads_no_compiler_and_changes_nothing(tmp_path):
    """It reads modules, and the shared libraries that PyTorch has loaded anyway, and that is all."""
    code = """
        import os, sys, torch
        sys.dont_write_bytecode = True
        changes = {
            "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.symlink",
            "os.truncate", "os.utime", "os.system", "os.fork", "os.posix_spawn", "subprocess.Popen",
            "fcntl.flock", "socket.connect", "tempfile.mkdtemp", "tempfile.mkstemp",
        }
        seen = []

        def watch(event, arguments):
            if event in changes:
                seen.append((event, arguments))
            elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                seen.append((event, arguments))
            elif event == "open" and not str(arguments[0]).endswith((".py", ".pyc")):
                seen.append((event, arguments))

        sys.addaudithook(watch)
        import orchard_jit
        assert not seen, seen
        for name in ("setuptools", "torch.utils.cpp_extension", "ninja", "jinja2", "platformdirs"):
            assert name not in sys.modules, name
    """
    cache = tmp_path / "cache"
    finish(python(code, ORCHARD_JIT_CACHE_DIR=str(cache)))
    assert not cache.exists()


def test_a_warm_first_call_is_silent_and_starts_no_program():
    code = """
        import torch, orchard_jit
        q = torch.randn(1, 2, 9, 64, requires_grad=True)
        orchard_jit.flash_attention(q, q, q).sum().backward()
        print("right" if q.grad.isfinite().all() else "wrong")
    """
    finish(python(code))
    forbidden = "import subprocess, os; subprocess.Popen = os.system = os.fork = None\n" + textwrap.dedent(
        code
    )
    out, err = finish(python(forbidden, PATH="/nonexistent", ORCHARD_JIT_OFFLINE="1"))
    assert (out, err) == ("right", "")


def test_a_graph_finds_its_kernels_without_the_python_functions():
    """As a compiled graph that another process has cached: only the operator's name is known."""
    code = """
        import torch
        from orchard_jit.call import Arguments
        q = torch.randn(1, 2, 9, 64)
        out, lse = torch.ops.orchard_jit.forward(q, q, q)
        print(torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(q, q, q), atol=1e-5))
        grads = torch.ops.orchard_jit.backward(out, None, *Arguments(q, q, q), out, lse, False)[:3]
        print(len(grads))
    """
    assert finish(python(code))[0].split() == ["True", "3"]


def test_the_operator_keeps_its_autograd_when_it_is_the_very_first_call():
    code = """
        import torch, orchard_jit
        q = torch.randn(1, 2, 9, 64, requires_grad=True)
        torch.ops.orchard_jit.forward(q, q, q)[0].sum().backward()
        print(q.grad.isfinite().all().item())
    """
    out, err = finish(python(code))
    assert (out, err) == ("True", "")


def test_errors_of_the_build_keep_their_type(tmp_path):
    code = """
        import torch, orchard_jit
        q = torch.randn(1, 2, 9, 64)
        orchard_jit.flash_attention(q, q, q)  # the operators are there, the next kernel is not
        q = torch.randn(1, 2, 9, 271)
        try:
            orchard_jit.flash_attention(q, q, q)
        except orchard_jit.MissingVariantError as error:
            print(error)
    """
    finish(python(code.replace("271", "64")))
    out, _ = finish(python(code, ORCHARD_JIT_OFFLINE="1"))
    assert "orchard-jit prebuild --head-dim 271 --dtype float32 --causal no" in out


def test_a_fork_after_loading_goes_on_working():
    code = """
        import os, torch, orchard_jit
        torch.set_num_threads(1)
        q = torch.randn(1, 2, 9, 64)
        expected = orchard_jit.flash_attention(q, q, q)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(orchard_jit.flash_attention(q, q, q), expected) else 1)
        print(os.waitpid(child, 0)[1])
    """
    assert finish(python(code))[0] == "0"


@pytest.mark.parametrize("first", ["no_grad", "compiled"])
def test_other_ways_to_be_first(first):
    code = f"""
        import torch, orchard_jit
        q = torch.randn(1, 2, 9, 64, requires_grad={first != "no_grad"})
        attention = orchard_jit.flash_attention
        if {first == "compiled"}:
            attention = torch.compile(attention, fullgraph=True, backend="aot_eager")
        out = attention(q, q, q)
        if out.requires_grad:
            out.sum().backward()
        print(torch.allclose(out, torch.nn.functional.scaled_dot_product_attention(q, q, q), atol=1e-5))
    """
    assert finish(python(code))[0] == "True"


def test_eight_processes_make_the_same_first_call_on_an_empty_cache(empty_cache):
    code = """
        import torch, orchard_jit
        torch.manual_seed(0)
        q = torch.randn(1, 2, 9, 64, requires_grad=True)
        out = orchard_jit.flash_attention(q, q, q)
        out.sum().backward()
        expected = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        print(torch.allclose(out, expected, atol=1e-5), q.grad.double().sum().item())
    """
    results = [finish(process) for process in [python(code) for _ in range(8)]]
    assert len({out for out, _ in results}) == 1
    assert results[0][0].startswith("True")
    said = "".join(err for _, err in results)
    for what in ("operators", "-forward-f32-d64", "-backward-f32-d64"):
        lines = [line for line in said.splitlines() if "orchard_jit: compiled" in line and what in line]
        assert len(lines) == 1, lines
