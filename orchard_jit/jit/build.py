"""Recipe -> shared library, by `torch.utils.cpp_extension.load`. Nobody else calls it.

`load` is used as a compiler driver in a fresh private directory: its own cache, version counter and
lock never come into play.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchard_jit.errors import CacheError, CompileError, ToolchainError
from orchard_jit.jit import workers
from orchard_jit.jit.recipe import Recipe, write_files

LOG = "build.log"
SOURCES = "src"

_SHOWN_ERRORS = 5
_PLAIN_PATH = re.compile(r"[\w./+,@%=-]+", re.ASCII)
_OF_THE_FOLDER = {
    os.strerror(errno.ENOSPC): errno.ENOSPC,
    os.strerror(errno.EDQUOT): errno.EDQUOT,
    "failed to map segment": errno.EACCES,  # noexec, or something like it
}
"""What is the fault of the folder and not of the source: another one may do."""


def build(recipe: Recipe, directory: Path) -> tuple[Path, ctypes.CDLL]:
    """Compile the recipe in `directory`, an empty folder of the caller's.

    Returns:
        The library's path and the library, loaded.

    Raises:
        ToolchainError: No compiler or no ninja.
        CompileError: The compiler refused the source, or made nothing that can be used. Its log is in `LOG`.
        OSError: The directory is of no use: the disk is full, or no library can be loaded from it.

    """
    check_toolchain()
    (directory / SOURCES).mkdir()
    (directory / "obj").mkdir()
    write_files(recipe, directory / SOURCES)

    from torch.utils import cpp_extension  # imports setuptools: 0.3 s that a cache hit need not pay

    workers.go_on()
    with _ninja_on_path(), _plain_path(directory) as place:
        try:
            cpp_extension.load(
                name=recipe.library_name,
                sources=[str(place / SOURCES / name) for name in recipe.sources],
                extra_cflags=_escaped(recipe.compile_flags),
                extra_ldflags=_escaped(recipe.link_flags),
                build_directory=str(place / "obj"),
                is_python_module=False,
                verbose=False,
            )
        except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
            raise _refusal(recipe, directory, _said(error).replace(str(place), str(directory))) from None
    (built,) = (directory / "obj").glob("*.so")  # a second build of one name in one process gets a suffix
    library = built.rename(directory / f"{recipe.library_name}.so")
    (directory / "obj" / "build.ninja").rename(directory / "build.ninja")
    shutil.rmtree(directory / "obj")
    handle = ctypes.CDLL(str(library))
    if missing := [name for name in recipe.exports if not hasattr(handle, name)]:
        raise _refusal(recipe, directory, f"error: the library that was made has no {', '.join(missing)}")
    return library, handle


def compiler() -> str:
    """The C++ compiler's command, as `cpp_extension` picks it."""
    return os.environ.get("CXX", "c++")


def toolchain() -> dict[str, Any]:
    """What a manifest says of the tools: the compiler's command and first line of version, and torch."""
    import torch

    return {"CXX": compiler(), "compiler": compiler_version(), "torch": torch.__version__}


def compiler_version() -> str:
    """The first line of what the compiler says of itself."""
    words = [*shlex.split(compiler()), "--version"]
    lines = subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()
    return lines[0] if lines else "unknown"


def check_toolchain() -> None:
    """Raise ToolchainError, saying what to install, unless a compiler and ninja can be started."""
    command = shlex.split(compiler())[0]
    if shutil.which(command) is None:
        raise ToolchainError(
            f"no C++ compiler: {command!r} is not on PATH. Install one (Debian, Ubuntu: apt-get install g++; "
            "Fedora: dnf install gcc-c++; macOS: xcode-select --install) or name yours in CXX. "
            "A machine without one can use kernels that were prebuilt elsewhere: orchard-jit prebuild --help"
        )
    if _ninja_directory() is None and shutil.which("ninja") is None:
        raise ToolchainError("ninja is missing. Install it with: pip install ninja")


def _ninja_directory() -> str | None:
    """Where pip's ninja lies: not on PATH when Python is called by its path and no venv is activated."""
    try:
        import ninja
    except ImportError:
        return None
    return str(ninja.BIN_DIR)


@contextmanager
def _ninja_on_path() -> Iterator[None]:
    directory = _ninja_directory()
    if shutil.which("ninja") is None and directory is not None:
        os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", os.defpath), directory))
    yield


@contextmanager
def _plain_path(directory: Path) -> Iterator[Path]:
    """Another path to the directory, if its own has letters that `cpp_extension` can't tell ninja."""
    if _PLAIN_PATH.fullmatch(str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="orchard_jit-") as folder:
        if not _PLAIN_PATH.fullmatch(folder):
            raise CacheError(
                f"nothing can be compiled in {directory}, nor in {folder}: set TMPDIR to a plain path"
            )
        link = Path(folder) / "build"
        link.symlink_to(directory)
        yield link


def _escaped(flags: Iterable[str]) -> list[str]:
    """For the shell, and for ninja, through which the shell gets them."""
    return [shlex.quote(flag).replace("$", "$$") for flag in flags]


def _said(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):  # the compiler that is asked for its version
        return f"error: `{shlex.join(error.cmd)}` ended with exit code {error.returncode}: no compiler"
    return f"{error}\n{error.__cause__}" if isinstance(error, OSError) else str(error)


def _refusal(recipe: Recipe, directory: Path, output: str) -> CompileError | OSError:
    """Why there is no library: an interrupt, the disk, or else what the compiler has said."""
    workers.go_on()
    for text, number in _OF_THE_FOLDER.items():
        if text in output:
            return OSError(number, text, str(directory))
    (directory / LOG).write_text(output, encoding="utf-8")
    errors = [line.strip() for line in output.splitlines() if re.search(r"\berror:", line)]
    shown = "\n  ".join(errors[:_SHOWN_ERRORS] or output.splitlines()[-_SHOWN_ERRORS:])
    return CompileError(f"compiling {recipe.title} failed:\n  {shown}")
