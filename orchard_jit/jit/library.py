"""Recipe -> loaded library: from memory, else from a store, else built and published.

    load -> in memory?
         -> _stored: in a store, verified, held, loaded      waits for nothing
         -> _make:   lock the key -> stored by now? -> build in `.staging` -> publish by a rename

Whatever fails after the compiler has succeeded costs the next process a build, and this one nothing: it goes
on with the copy that it has loaded.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from orchard_jit.errors import CompileError, MissingVariantError, ToolchainError
from orchard_jit.jit import build, eviction, lock, missing, progress, roots, workers
from orchard_jit.jit.recipe import Recipe, platform_tag
from orchard_jit.jit.store import Entry, Store

_GUESSED_SECONDS = {"binding": 10.0, "variant": 2.0, "peak": 1.0}

_loaded: dict[str, ctypes.CDLL] = {}
_thread_locks: dict[str, threading.Lock] = {}
os.register_at_fork(after_in_child=_thread_locks.clear)  # the threads that held them are not in the child


def load(recipe: Recipe) -> ctypes.CDLL:
    """The recipe's library, loaded into this process. A hit starts no compiler and waits for no lock.

    Raises:
        MissingVariantError: It would have to be compiled, and `ORCHARD_JIT_OFFLINE=1` forbids that.
        ToolchainError: It would have to be compiled, and there is no compiler or no ninja.
        CompileError: The compiler refused it.
        CacheError: The cache can't be trusted, or there is no folder to compile in.

    """
    return load_all([recipe])[0]


def load_all(recipes: Sequence[Recipe]) -> list[ctypes.CDLL]:
    """Like `load` for each; those that have to be compiled are compiled side by side."""
    absent = [recipe for recipe in recipes if not _is_at_hand(recipe)]
    if workers.inside():
        for recipe in absent:
            _load_once(recipe)
    elif absent:
        with workers.workers(min(len(absent), os.cpu_count() or 1)) as crew:
            for recipe in absent:
                crew.submit(_load_once, recipe)
            for future in crew.ended():
                future.result()
    return [_loaded[recipe.key] for recipe in recipes]


def find(recipe: Recipe) -> Entry | None:
    """The recipe's verified entry in the first store that has one."""
    return next((entry for _, entry in _found(recipe)), None)


def offline() -> bool:
    """Whether `ORCHARD_JIT_OFFLINE` forbids compiling."""
    return os.environ.get("ORCHARD_JIT_OFFLINE", "") not in ("", "0")


def _is_at_hand(recipe: Recipe) -> bool:
    """Whether it is loaded, now if not before, without compiling anything."""
    if recipe.key not in _loaded and (library := _stored(recipe)):
        _loaded.setdefault(recipe.key, library)
    return recipe.key in _loaded


def _load_once(recipe: Recipe) -> None:
    with _thread_locks.setdefault(recipe.key, threading.Lock()):
        if recipe.key not in _loaded:
            _loaded[recipe.key] = _make(recipe)


def _found(recipe: Recipe) -> Iterator[tuple[Store, Entry]]:
    """Its verified entries, in the order of the stores that have one."""
    for store in roots.search_stores():
        if entry := store.find(recipe.shelf, recipe.key):
            yield store, entry


def _stored(recipe: Recipe) -> ctypes.CDLL | None:
    """Loaded from the first store that has it in a state that can be loaded."""
    for store, entry in _found(recipe):
        if entry.hold():
            try:
                return ctypes.CDLL(str(entry.library))
            except OSError as error:  # whole, but made for another system
                store.set_aside(entry.directory, str(error))
    return None


def _make(recipe: Recipe) -> ctypes.CDLL:
    """Build a library that no store has, and publish it, unless another process is quicker."""
    if not recipe.shelf.endswith(platform_tag()):
        raise ToolchainError(
            f"{recipe.title} is for {recipe.shelf}; this machine compiles for {platform_tag()} alone"
        )
    if offline():
        raise MissingVariantError(missing.message(recipe))
    build.check_toolchain()
    try:
        return _make_in(roots.writable_store(), recipe)
    except OSError as error:  # the disk is full, for example
        return _make_in(roots.temporary_store(error.strerror or str(error)), recipe)


def _make_in(store: Store, recipe: Recipe) -> ctypes.CDLL:
    def waiting(holder: str) -> None:
        progress.say(f"waiting for {recipe.title}: {holder} is compiling it")

    for leftover in store.leftovers():
        shutil.rmtree(leftover, ignore_errors=True)
    with lock.held(store.lock_path(recipe.key), waiting, workers.go_on):
        workers.go_on()
        return _stored(recipe) or _build_and_publish(recipe, store)  # whoever held the lock may have built it


def _build_and_publish(recipe: Recipe, store: Store) -> ctypes.CDLL:
    staged = store.stage(recipe.key)
    try:
        started = time.monotonic()
        with progress.compiling(recipe.title, str(store.root), expected_seconds(recipe)):
            library, handle = build.build(recipe, staged)
        seconds = time.monotonic() - started
        _publish(recipe, store, staged, library, seconds)
        return handle
    except CompileError as error:
        kept = staged
        with suppress(OSError):
            kept = store.keep_failed(staged)
        said = str(error).replace(str(staged), str(kept))
        raise CompileError(f"{said}\nfull log: {kept / build.LOG}\nsources: {kept / build.SOURCES}") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)  # whatever of it has found no other place


def _publish(recipe: Recipe, store: Store, staged: Path, library: Path, seconds: float) -> None:
    """Into the store, if it can be; what is loaded goes on working without its file."""
    manifest = {
        "title": recipe.title,
        "spec": dict(recipe.spec),
        "key_inputs": recipe.key_inputs,
        "toolchain": build.toolchain(),
        "library": library.name,
        "build_seconds": round(seconds, 3),
    }
    try:
        entry = store.publish(staged, recipe.shelf, recipe.key, manifest)
        if entry is not None:
            entry.hold()
            eviction.after_publishing(store)
    except OSError as error:
        warnings.warn(
            f"orchard_jit: {recipe.title} is compiled but can't be kept in {store.root}: {error}",
            stacklevel=2,
        )


def expected_seconds(recipe: Recipe) -> float:
    """What the middle one of earlier builds of the same kind took."""
    (kind,) = recipe.spec
    return _usual_seconds(kind, str(roots.cache_root()))


@lru_cache
def _usual_seconds(kind: str, _: str) -> float:
    """Asked once in a process: it reads all manifests."""
    earlier = sorted(
        entry.manifest["build_seconds"]
        for store in roots.search_stores()
        for entry in store.entries()
        if kind in entry.manifest["spec"]
    )
    return float(earlier[len(earlier) // 2]) if earlier else _GUESSED_SECONDS[kind]
