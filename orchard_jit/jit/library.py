"""Recipe -> loaded library: from memory, else from a store, else built and published."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from orchard_jit.blocks import shipped
from orchard_jit.errors import CompileError, MissingVariantError, ToolchainError
from orchard_jit.jit import build, lock, progress, roots
from orchard_jit.jit.recipe import Recipe, platform_tag
from orchard_jit.jit.store import Entry, Store
from orchard_jit.variant import Variant

_GUESSED_SECONDS = {"binding": 10.0, "variant": 2.0, "peak": 1.0}

_loaded: dict[str, ctypes.CDLL] = {}
_thread_locks: dict[str, threading.Lock] = {}


def load(recipe: Recipe) -> ctypes.CDLL:
    """The recipe's library, loaded into this process. A hit starts no compiler and takes no lock.

    Raises:
        MissingVariantError: It would have to be compiled, and `ORCHARD_JIT_OFFLINE=1` forbids that.
        ToolchainError: It would have to be compiled, and there is no compiler or no ninja.
        CompileError: The compiler refused it.
        CacheError: The cache can't be trusted.

    """
    with _thread_locks.setdefault(recipe.key, threading.Lock()):
        if recipe.key not in _loaded:
            entry = find(recipe)
            _loaded[recipe.key] = ctypes.CDLL(str(entry.library)) if entry else _make(recipe)
        return _loaded[recipe.key]


def load_all(recipes: Sequence[Recipe]) -> list[ctypes.CDLL]:
    """Like `load` for each; those that have to be compiled are compiled side by side."""
    if len(recipes) == 1 or all(recipe.key in _loaded for recipe in recipes):
        return [load(recipe) for recipe in recipes]
    with ThreadPoolExecutor(max_workers=min(len(recipes), os.cpu_count() or 1)) as pool:
        return list(pool.map(load, recipes))


def find(recipe: Recipe) -> Entry | None:
    """The recipe's verified entry in the first store that has one."""
    for store in roots.search_stores():
        entry = store.find(recipe.shelf, recipe.key)
        if entry is not None:
            return entry
    return None


def offline() -> bool:
    """Whether `ORCHARD_JIT_OFFLINE` forbids compiling."""
    return os.environ.get("ORCHARD_JIT_OFFLINE", "") not in ("", "0")


def _make(recipe: Recipe) -> ctypes.CDLL:
    """Build a library that no store has, and publish it, unless another process is quicker."""
    if not recipe.shelf.endswith(platform_tag()):
        raise ToolchainError(
            f"{recipe.title} is for {recipe.shelf}; this machine compiles for {platform_tag()} alone"
        )
    if offline():
        raise MissingVariantError(_missing_text(recipe))
    build.check_toolchain()
    store = roots.writable_store()

    def waiting(holder: str) -> None:
        progress.say(f"waiting for {recipe.title}: {holder} is compiling it")

    with lock.held(store.lock_path(recipe.key), waiting):
        entry = find(recipe)  # whoever held the lock may have built it
        if entry is not None:
            return ctypes.CDLL(str(entry.library))
        return _build_and_publish(recipe, store)


def _build_and_publish(recipe: Recipe, store: Store) -> ctypes.CDLL:
    staged = store.stage(recipe.key)
    started = time.monotonic()
    try:
        with progress.compiling(recipe.title, str(store.root), _expected_seconds(recipe, store)):
            library, handle = build.build(recipe, staged)
    except CompileError:
        raise  # its message points into the staging folder
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    manifest = {
        "title": recipe.title,
        "spec": dict(recipe.spec),
        "key_inputs": recipe.key_inputs,
        "toolchain": build.toolchain(),
        "library": library.name,
        "build_seconds": round(time.monotonic() - started, 3),
        "created": int(time.time()),
    }
    if store.publish(staged, recipe.shelf, recipe.key, manifest) is None:
        # The same library is there already; the copy that is loaded goes on working without its file.
        shutil.rmtree(staged, ignore_errors=True)
    return handle


def _expected_seconds(recipe: Recipe, store: Store) -> float:
    """What the middle one of earlier builds of the same kind took."""
    (kind,) = recipe.spec
    earlier = [entry.manifest["build_seconds"] for entry in store.entries() if kind in entry.manifest["spec"]]
    return sorted(earlier)[len(earlier) // 2] if earlier else _GUESSED_SECONDS[kind]


def _missing_text(recipe: Recipe) -> str:
    searched = [str(store.root) for store in roots.search_stores()] or [f"{roots.cache_root()} (missing)"]
    if "variant" in recipe.spec:
        command = prebuild_command(Variant.from_json(recipe.spec["variant"]))
    else:
        command = "orchard-jit prebuild --operators"
    return (
        f"{recipe.title} (key {recipe.key}) is not in the cache, and ORCHARD_JIT_OFFLINE forbids compiling.\n"
        f"searched: {', '.join(searched)}\n"
        f"prebuild it where there is a compiler, for {recipe.shelf}:\n  {command}"
    )


def prebuild_command(variant: Variant) -> str:
    """The shell command that puts this variant into the cache."""
    words = ["orchard-jit prebuild", f"--head-dim {variant.head_dim}", f"--dtype {variant.dtype}"]
    if variant.head_dim_v != variant.head_dim:
        words.append(f"--head-dim-v {variant.head_dim_v}")
    words.append(f"--causal {'yes' if 'causal' in variant.features else 'no'}")
    if features := [feature for feature in variant.features if feature != "causal"]:
        words.append(f"--features {','.join(features)}")
    if variant.score:
        words.append(f"--score {shlex.quote(variant.score)}")
    own_blocks = dict(variant.blocks) != shipped(variant)
    if own_blocks or variant.kernel == "decode":
        words.append(f"--kernel {variant.kernel}")
    if own_blocks:
        words.append(f"--blocks {','.join(f'{name}={size}' for name, size in variant.blocks)}")
    words.append(f"--backend {variant.backend} --arch {variant.arch}")
    return " ".join(words)
