"""Recipe -> shared library, by `torch.utils.cpp_extension.load`. Nobody else calls it.

`load` is used as a compiler driver in a fresh private directory: its own cache, version counter and
lock never come into play.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchard_jit.errors import CompileError, ToolchainError
from orchard_jit.jit.recipe import Recipe, write_files

LOG = "build.log"
_SHOWN_ERRORS = 5


def build(recipe: Recipe, directory: Path) -> tuple[Path, ctypes.CDLL]:
    """Compile the recipe in `directory`, an empty folder of the caller's.

    Returns:
        The library's path and the library, loaded.

    Raises:
        ToolchainError: No compiler or no ninja.
        CompileError: The compiler refused the source.

    """
    check_toolchain()
    source_directory = directory / "src"
    source_directory.mkdir()
    write_files(recipe, source_directory)
    object_directory = directory / "obj"
    object_directory.mkdir()

    from torch.utils import cpp_extension  # imports setuptools: 0.3 s that a cache hit need not pay

    with _ninja_on_path():
        try:
            cpp_extension.load(
                name=recipe.library_name,
                sources=[str(source_directory / name) for name in recipe.sources],
                extra_cflags=list(recipe.compile_flags),
                extra_ldflags=list(recipe.link_flags),
                build_directory=str(object_directory),
                is_python_module=False,
                verbose=False,
            )
        except (RuntimeError, OSError) as error:
            raise _compile_error(recipe, directory, str(error)) from None
    library = directory / f"{recipe.library_name}.so"
    (built,) = object_directory.glob("*.so")  # a second build of one name in one process gets a suffix
    built.rename(library)
    (object_directory / "build.ninja").rename(directory / "build.ninja")
    shutil.rmtree(object_directory)
    return library, ctypes.CDLL(str(library))


def compiler() -> str:
    """The C++ compiler's command, as `cpp_extension` picks it."""
    return os.environ.get("CXX", "c++")


def toolchain() -> dict[str, Any]:
    """What a manifest says of the tools: the compiler's command and first line of version, and torch."""
    import torch

    lines = subprocess.run(
        [*shlex.split(compiler()), "--version"], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return {"CXX": compiler(), "compiler": lines[0] if lines else "unknown", "torch": torch.__version__}


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


def _compile_error(recipe: Recipe, directory: Path, output: str) -> CompileError:
    log = directory / LOG
    log.write_text(output, encoding="utf-8")
    errors = [line.strip() for line in output.splitlines() if re.search(r"\berror:", line)]
    shown = "\n  ".join(errors[:_SHOWN_ERRORS] or output.splitlines()[-_SHOWN_ERRORS:])
    return CompileError(
        f"compiling {recipe.title} failed:\n  {shown}\nfull log: {log}\nsources: {directory / 'src'}"
    )
