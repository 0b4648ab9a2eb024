"""What the tests of the cache are made of: the smallest library, an entry without one, fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

from orchard_jit.jit import recipe

SHELF, KEY = "linux-x86_64", "0123456789abcdef0123"

USE_TINY = """
    from tests.jit.tiny import make_recipe
    from orchard_jit.jit import library
    print(library.load(make_recipe()).answer())
"""


def make_recipe(body="int answer() { return 42; }", title="a tiny library", exports=("answer",)):
    """A recipe that compiles in no time, and whose library answers 42."""
    return recipe.Recipe(
        title=title,
        spec={"variant": {}},
        shelf=recipe.platform_tag(),
        origin={"body": body},
        files={"tiny.cpp": f'extern "C" {body}\n'},
        sources=("tiny.cpp",),
        compile_flags=("-O1",),
        link_flags=(),
        exports=exports,
    )


def publish(store, content=b"library", key=KEY, shelf=SHELF, **changes):
    """An entry whose library is this content."""
    staged = store.stage(key)
    (staged / "lib.so").write_bytes(content)
    manifest = {"title": "a kernel", "library": "lib.so", "spec": {"variant": {}}, "build_seconds": 1.5}
    return store.publish(staged, shelf, key, {**manifest, **changes})


def python(code, **environment):
    """Start a fresh Python on some code."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def finish(process):
    """Its output, stripped, and what it said on stderr."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.strip(), err


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
