"""What is done to the cache, and what must be true afterwards. Each trial returns what it has counted."""

from __future__ import annotations

import errno
import random
import time
import warnings
from contextlib import contextmanager

from orchard_jit.jit import lock, roots
from orchard_jit.jit.manifest import FILE
from orchard_jit.jit.store import Store
from tests.chaos import child

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)


def kills(count: int, seed: int = 0) -> dict[str, int]:
    """Builds killed at random moments, half of them with their compilers; the next call must be right."""
    chance = random.Random(seed)
    began = time.monotonic()
    assert child.is_right(child.number(0))
    whole_build = time.monotonic() - began
    killed = 0
    for index in range(1, count + 1):
        recipe = child.number(index)
        killed += child.killed_after(recipe, chance.uniform(0, whole_build), chance.random() < 0.5)
        assert child.is_right(recipe), f"kill {index}"
    return {"trials": count, "killed before they were ready": killed, "right afterwards": count, **order()}


def kills_at_steps(every: int = 1) -> dict[str, int]:
    """A build killed before its first step, its second and so on, until it ends before it is killed."""
    step = killed = 0
    while child.killed_at(child.number(1000 + step), step):
        killed += 1
        assert child.is_right(child.number(1000 + step)), f"step {step}"
        step += every
    return {"steps": step, "killed": killed, "right afterwards": killed, **order()}


def refusals(every: int = 1, errors=MACHINE_ERRORS) -> dict[str, int]:
    """The cache's disk fails from one step on, for each step: the call is right, and so is the next one."""
    root = roots.cache_root()
    count = 0
    for number, code in enumerate(errors):
        step = 0
        while True:
            recipe = child.number(2000 + 200 * number + step)
            exit_code, refused = child.refused_from(recipe, step, code, root)
            assert exit_code == child.BUILT, (
                f"{errno.errorcode[code]} from step {step} on: exit code {exit_code}"
            )
            if not refused:
                break
            assert child.is_right(recipe)
            count += 1
            step += every
    return {"errors": len(errors), "refused writes": count, "right at once": count, "right afterwards": count}


def corruptions(positions: int = 64) -> dict[str, int]:
    """Every file of an entry flipped, truncated, deleted: what is found then must be what was built."""
    recipe = child.number(3000)
    assert child.is_right(recipe)
    found, harmless = 0, 0
    read_only = Store(roots.cache_root(), writable=False)  # which sets nothing aside
    entry = read_only.find(recipe.shelf, recipe.key)
    built = entry.library.read_bytes()
    for path in sorted(path for path in entry.directory.rglob("*") if path.is_file()):
        for damage in _damages(path.read_bytes(), positions):
            with _damaged(path, damage), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                again = read_only.find(recipe.shelf, recipe.key)
                assert again is None or again.library.read_bytes() == built, f"{path.name} as {damage!r:.40}"
                assert again is None or path != entry.library
                for listed in read_only.entries():
                    assert listed.title.isprintable()
                    assert listed.disk_bytes >= 0
            found += again is None
            harmless += again is not None
    assert read_only.find(recipe.shelf, recipe.key) == entry
    (entry.directory / FILE).write_text("{")
    assert child.is_right(recipe), "what is damaged is built anew"
    return {"corruptions": found + harmless, "found": found, "of text that is not loaded": harmless}


def crowd(processes: int, libraries: int) -> dict[str, int]:
    """Many processes that want the same libraries at the same moment: each is built once."""
    recipes = [child.number(4000 + index) for index in range(libraries)]
    children = [child.start(recipe) for _ in range(processes) for recipe in recipes]
    codes = [child.ended(one) for one in children]
    assert set(codes) <= {child.RIGHT, child.BUILT}
    assert codes.count(child.BUILT) == libraries
    return {"processes": len(children), "libraries": libraries, "builds": codes.count(child.BUILT), **order()}


def order() -> dict[str, int]:
    """That nothing lies about once a further build is done."""
    assert child.is_right(child.number(random.randrange(10**6, 10**9)))
    base = roots.cache_root() / "v1"
    _settle(base)
    assert not list(base.glob(".staging/*"))
    assert not list(base.glob(".damaged/*"))
    assert not list(base.glob(".failed/*"))
    assert all(lock.is_free(path) for path in base.glob(".locks/*"))
    return {"left behind": 0}


def _settle(base) -> None:
    """Compilers whose Python was killed alone may still write; the next build removes that."""
    deadline = time.monotonic() + 10
    while list(base.glob(".staging/*")) and time.monotonic() < deadline:
        assert child.is_right(child.number(random.randrange(10**6, 10**9)))


def _damages(content: bytes, positions: int):
    places = {0, len(content) - 1, *range(0, len(content), max(1, len(content) // positions))}
    for place in sorted(places):
        yield content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        yield content[:place]
    yield content + b"\0"
    yield None


@contextmanager
def _damaged(path, content):
    status, before = path.stat(), path.read_bytes()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)
        path.chmod(status.st_mode)
