"""Recipes into the cache, several at once, with an account of each."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass

from orchard_jit import binding
from orchard_jit.errors import CacheError, OrchardError
from orchard_jit.jit import library, roots
from orchard_jit.jit.recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """What became of one recipe.

    Attributes:
        recipe: The recipe.
        state: "cached", "built" or "failed".
        seconds: How long it took.
        directory: Where it lies, unless it failed.
        error: Why it failed.

    """

    recipe: Recipe
    state: str
    seconds: float
    directory: str | None = None
    error: str | None = None


def build_all(recipes: Sequence[Recipe], jobs: int) -> Iterator[Outcome]:
    """Build what no store has, `jobs` at a time; outcomes come in the order in which they are ready."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures = [pool.submit(_outcome, recipe) for recipe in recipes]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # Ctrl-C: what is being compiled is waited for, nothing else is begun
            pool.shutdown(cancel_futures=True)
            raise


def _outcome(recipe: Recipe) -> Outcome:
    started = time.monotonic()
    try:
        entry = library.find(recipe)
        state = "cached" if entry else "built"
        if entry is None:
            _load(recipe)
            entry = library.find(recipe)
        if entry is None:
            raise CacheError(f"{recipe.title} was loaded, but no store has it now")
    except (OrchardError, OSError) as error:
        return Outcome(recipe, "failed", time.monotonic() - started, error=str(error))
    return Outcome(recipe, state, time.monotonic() - started, str(entry.directory))


def _load(recipe: Recipe) -> None:
    if "binding" in recipe.spec:
        binding.load()  # the operators must not be in the process without their way back to Python
    else:
        library.load(recipe)


def require_lasting_cache() -> None:
    """Refuse the temporary folder that stands in for a cache which can't be written.

    Raises:
        CacheError: What is built now would be lost when this process ends.

    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says the same, less strictly
        lasts = roots.writable_store().root == roots.cache_root()
    if not lasts:
        raise CacheError(
            f"the cache {roots.cache_root()} can't be written; set ORCHARD_JIT_CACHE_DIR to a writable folder"
        )


@contextmanager
def quiet_progress() -> Iterator[None]:
    """Silence the package's own lines about compiling while a command shows the same in its own way."""
    before = os.environ.get("ORCHARD_JIT_QUIET")
    os.environ["ORCHARD_JIT_QUIET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["ORCHARD_JIT_QUIET"]
        else:
            os.environ["ORCHARD_JIT_QUIET"] = before
