"""Children of this process that load the smallest library, and what is done to them while they do.

A child is a fork: PyTorch is imported once. What a step is, is told by Python's own audit events: every file
that is opened to be written, made, renamed, removed or locked, every program that is started.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

from orchard_jit.jit import library, roots
from tests.jit.tiny import make_recipe

ANSWER = 42
RIGHT, BUILT, WRONG, RAISED = range(4)
"""Exit codes: the library came from the cache and was right, the child has built it, it was not right."""

_STEPS = {
    "open",
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "os.utime",
    "fcntl.flock",
    "subprocess.Popen",
    "ctypes.dlopen",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def number(index: int):
    """A library of its own for every trial, which gives the same answer."""
    return make_recipe(f"int answer() {{ return {index} * 0 + {ANSWER}; }}", f"number {index}")


def start(recipe, at_step=None) -> int:
    """Fork a child that loads the library, as a process of its own session.

    Args:
        recipe: The library.
        at_step: Called before every step, with its event and arguments.

    Returns:
        Its process number. It ends with one of the codes above.

    """
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        os.environ["ORCHARD_JIT_QUIET"] = "1"
        warnings.simplefilter("ignore")
        library._loaded.clear()
        roots._temporary.clear()
        built = _count_builds()
        if at_step is not None:
            sys.addaudithook(
                lambda event, arguments: _is_step(event, arguments) and at_step(event, arguments)
            )
        right = library.load(recipe).answer() == ANSWER
        code = (BUILT if built else RIGHT) if right else WRONG
    except BaseException as error:
        print(f"\n{type(error).__name__}: {error}", file=sys.stderr)
        code = RAISED
    for folder in roots._temporary.values():  # which a process removes at its regular end
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


def is_right(recipe) -> bool:
    """Whether an undisturbed child gets the right library."""
    return ended(start(recipe)) in (RIGHT, BUILT)


def ended(child: int) -> int:
    """Its exit code, once it has ended; the negative signal that has killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_after(recipe, seconds: float, whole_session: bool) -> bool:
    """Whether a child that loads the library was killed before it was ready."""
    child = start(recipe)
    time.sleep(seconds)
    try:
        (os.killpg if whole_session else os.kill)(child, signal.SIGKILL)
    except ProcessLookupError:  # its session is not there yet
        os.kill(child, signal.SIGKILL)
    return ended(child) == -signal.SIGKILL


def killed_at(recipe, step: int) -> bool:
    """Whether a child that loads the library was killed before that step, and did not end before it."""
    left = [step]

    def kill(event, arguments):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return ended(start(recipe, kill)) == -signal.SIGKILL


def refused_from(recipe, step: int, errno: int, root: Path) -> tuple[int, bool]:
    """The exit code of a child whose steps below `root` fail from the given one on, and whether any has."""
    left = [step]
    witness = root.parent / "refused"
    witness.unlink(missing_ok=True)

    def refuse(event, arguments):
        if not str(arguments[0]).startswith(str(root)) or event in ("ctypes.dlopen", "fcntl.flock"):
            return
        left[0] -= 1
        if left[0] == -1:
            os.close(os.open(witness, os.O_CREAT | os.O_WRONLY))
        if left[0] < 0:
            raise OSError(errno, os.strerror(errno), arguments[0])

    code = ended(start(recipe, refuse))
    return code, witness.exists()


def _count_builds() -> list[str]:
    """Filled, from now on, with the names of what is compiled."""
    built, build = [], library.build.build

    def counted(recipe, directory):
        built.append(recipe.title)
        return build(recipe, directory)

    library.build.build = counted
    return built


def _is_step(event: str, arguments: tuple) -> bool:
    if event == "open":
        path, _, flags = arguments
        return isinstance(path, str) and bool(flags & _WRITES)
    return event in _STEPS
