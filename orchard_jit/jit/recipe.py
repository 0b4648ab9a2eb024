"""Everything that decides what a compiled library is: its texts, its flags, its platform."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchard_jit import backends
from orchard_jit.jit.render import Rendering, text_name
from orchard_jit.variant import Variant

ABI_VERSION = 2
"""Version of `params.h`: what the binding and the plug-ins agree on."""
ENTRY_POINTS = ("scratch", "run", "storage")
"""What a plug-in exports, in the order of `orchard::Kernel` in templates/binding/kernels.h."""

_KEY_SCHEMA = 1
_KEY_DIGITS = 20


@dataclass(frozen=True)
class Recipe:
    """One library to be: what to compile and how. Equal keys mean interchangeable libraries.

    Attributes:
        title: What it is called in messages.
        spec: What it is, as JSON values, for the manifest.
        shelf: The folder of the cache that it belongs to: what the library can run on.
        origin: What `files` follow from, as JSON values. It stands for them in the key.
        files: Texts by file name.
        sources: Those of `files` that the compiler is given.
        compile_flags: For the compiler, in order.
        link_flags: For the linker, in order.
        exports: Functions that the library must have to be of any use.

    """

    title: str
    spec: Mapping[str, Any]
    shelf: str
    origin: Mapping[str, Any]
    files: Mapping[str, str]
    sources: tuple[str, ...]
    compile_flags: tuple[str, ...]
    link_flags: tuple[str, ...]
    exports: tuple[str, ...] = ()

    @property
    def key_inputs(self) -> dict[str, Any]:
        """What the key is made of. Not in it: paths, times and the default compiler's version.

        A machine without a compiler must find what another has built, so the compiler's version
        is written to the manifest instead; a compiler chosen by `CXX` is in the key. The processor is
        where a flag leaves the instruction set to the compiler: elsewhere that library would crash.
        """
        inputs: dict[str, Any] = {
            "schema": _KEY_SCHEMA,
            "shelf": self.shelf,
            "origin": self.origin,
            "sources": list(self.sources),
            "compile_flags": list(self.compile_flags),
            "link_flags": list(self.link_flags),
            "CXX": os.environ.get("CXX"),
            "MACOSX_DEPLOYMENT_TARGET": os.environ.get("MACOSX_DEPLOYMENT_TARGET"),
        }
        if any(word.endswith("=native") for word in (*self.compile_flags, *_words(inputs["CXX"]))):
            inputs["processor"] = _processor()
        return inputs

    @cached_property
    def key(self) -> str:
        """What the library is called everywhere: `key_of` its inputs."""
        return key_of(self.key_inputs)

    @property
    def library_name(self) -> str:
        """Unique in a process, as PyTorch's extension loader wants it."""
        return f"orchard_{self.key}"


def key_of(inputs: Mapping[str, Any]) -> str:
    """20 hexadecimal digits of the SHA-256 of a recipe's `key_inputs`."""
    canonical = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_KEY_DIGITS]


def for_variant(variant: Variant) -> Recipe:
    """The plug-in of a variant. It knows no torch, so its shelf names the platform alone.

    Raises:
        ValueError: The variant does not fit its arch.

    """
    backend = backends.get(variant.backend)
    backend.check(variant)
    templates = backend.templates(variant)
    values = variant.to_json()
    files = Rendering(
        *templates,
        "params.h.j2",
        variant=values,
        block=dict(variant.blocks),
        abi_version=ABI_VERSION,
        **backend.context(variant),
    )
    return Recipe(
        title=variant.name,
        spec={"variant": values},
        shelf=platform_tag(backend.machine(variant)),
        origin=files.origin,
        files=files,
        sources=(text_name(templates[0]),),
        compile_flags=(*backend.compile_flags(variant), *_user_flags()),
        link_flags=backend.link_flags(variant),
        exports=tuple(entry_point(name) for name in ENTRY_POINTS),
    )


def for_binding() -> Recipe:
    """The operators. They are built against one torch release, so their shelf names it."""
    import torch

    files = Rendering("binding/*", "params.h.j2", abi_version=ABI_VERSION)
    on_mac = sys.platform == "darwin"
    abi = f"cxx11abi{int(torch.compiled_with_cxx11_abi())}"
    return Recipe(
        title=f"operators for torch {torch.__version__}",
        spec={"binding": {"torch": torch.__version__, "cxx11_abi": torch.compiled_with_cxx11_abi()}},
        shelf=f"torch{torch.__version__}-{abi}-{platform_tag()}",
        origin=files.origin,
        files=files,
        sources=("autograd.cpp", "binding.cpp"),
        # at::parallel_for is a template: without OpenMP in our own translation unit it would run serially.
        # PyTorch has loaded the OpenMP runtime already; linking another would start a second thread pool.
        # Without the macro PyTorch's headers declare every operator there is, which takes seconds to read.
        compile_flags=(
            *("-O1", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-DAT_PER_OPERATOR_HEADERS"),
            *(() if on_mac else ("-fopenmp",)),
            *_user_flags(),
        ),
        link_flags=() if on_mac else ("-Wl,-s",),  # names are a fifth of the file, which each process sums up
        exports=("orchard_set_resolver", "orchard_forget_kernels"),
    )


def entry_point(name: str) -> str:
    """What one of `ENTRY_POINTS` is called in a plug-in."""
    return f"orchard_{name}_v{ABI_VERSION}"


def platform_tag(machine: str | None = None) -> str:
    """Operating system and machine (this one, by default), as "linux-x86_64" or "darwin-arm64"."""
    return f"{sys.platform}-{machine or platform.machine().lower()}"


def write_files(recipe: Recipe, directory: Path) -> None:
    """Write the rendered texts below `directory`, which exists."""
    for name, text in recipe.files.items():
        (directory / name).write_text(text, encoding="utf-8")


def _processor() -> str:
    """What `-march=native` stands for on this machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return backends.get("cpu").device()
    told = ("model name", "flags", "Features", "CPU part")
    return "; ".join(sorted({line.partition(":")[2].strip() for line in lines if line.startswith(told)}))


def _user_flags() -> tuple[str, ...]:
    return _words(os.environ.get("ORCHARD_JIT_CXXFLAGS"))


def _words(line: str | None) -> tuple[str, ...]:
    """The words of a line, as a shell has them. Mostly there is none, and even that takes `shlex` long."""
    return tuple(shlex.split(line)) if line else ()
