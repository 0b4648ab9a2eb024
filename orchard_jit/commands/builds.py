"""Recipes into the cache, several at once, with an account of each."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from orchard_jit import binding
from orchard_jit.commands.memory import BUILD_BYTES, Budget, available_bytes
from orchard_jit.errors import CacheError, OrchardError
from orchard_jit.jit import library, roots
from orchard_jit.jit.recipe import Recipe
from orchard_jit.jit.workers import workers


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


class Estimate:
    """When all will be built, by what such builds took before, and by how these differ from that.

    Attributes:
        done: How many have ended.

    """

    def __init__(self, recipes: Sequence[Recipe], jobs: int) -> None:
        self.done = 0
        self._expected = {recipe.key: library.expected_seconds(recipe) for recipe in recipes}
        self._jobs = max(1, min(jobs, len(recipes)))
        self._foreseen = self._took = 0.0
        self._end = time.monotonic() + self._rest()

    def add(self, outcome: Outcome) -> None:
        """Take note of a build that has ended."""
        self.done += 1
        self._foreseen += self._expected.pop(outcome.recipe.key)
        self._took += outcome.seconds
        self._end = time.monotonic() + self._rest() * self._took / self._foreseen

    def seconds_left(self) -> float:
        """From now on."""
        return max(self._end - time.monotonic(), 0.0)

    def _rest(self) -> float:
        return max(sum(self._expected.values()) / self._jobs, max(self._expected.values(), default=0.0))


def build_all(recipes: Sequence[Recipe], jobs: int) -> Iterator[Outcome]:
    """Build what no store has, `jobs` at a time or as many as there is memory for.

    Yields:
        Outcomes in the order in which they are ready. What is compiled when the caller stops asking is ended.

    """
    memory = Budget(available_bytes())
    with workers(jobs) as crew:
        for recipe in recipes:
            crew.submit(_outcome, recipe, memory)
        for future in crew.ended():
            yield future.result()


def _outcome(recipe: Recipe, memory: Budget) -> Outcome:
    started = time.monotonic()
    try:
        entry = library.find(recipe)
        state = "cached" if entry else "built"
        if entry is None:
            (kind,) = recipe.spec
            with memory.share(BUILD_BYTES[kind]):
                started = time.monotonic()
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
