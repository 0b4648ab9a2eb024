"""`orchard-jit render`: the sources of a variant as the compiler would get them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchard_jit.commands import options, values, variants
from orchard_jit.commands.console import UsageError, bytes_text, count_text, print_json
from orchard_jit.jit.recipe import Recipe, for_variant, write_files
from orchard_jit.variant import DTYPES, KERNELS

DESCRIPTION = "Print the sources of one kernel as the compiler would get them."
EXAMPLE = "orchard-jit render --kernel forward --dtype float32 --head-dim 64 --file variant.h"


def add_options(verb: argparse.ArgumentParser) -> None:
    """Declare the parameters of `run`."""
    verb.add_argument("--kernel", choices=KERNELS, required=True, help="which pass")
    verb.add_argument("--dtype", choices=DTYPES, required=True, metavar="T", help=", ".join(DTYPES))
    verb.add_argument(
        "--head-dim", type=values.head_dim, required=True, metavar="D", help="head dim of query and key"
    )
    verb.add_argument(
        "--head-dim-v", type=values.head_dim, metavar="D", help="head dim of value (default: the same)"
    )
    verb.add_argument("--causal", action="store_true", help="with a causal mask")
    options.add_features(verb)
    options.add_target(verb)
    where = verb.add_mutually_exclusive_group()
    where.add_argument("--file", metavar="NAME", help="only this file")
    where.add_argument(
        "--out", type=Path, metavar="DIR", help="write the files there, print the key and the flags"
    )
    options.add_json(verb)


def run(
    *,
    kernel: str,
    dtype: str,
    head_dim: int,
    head_dim_v: int | None,
    causal: bool,
    features: Sequence[str],
    score: str,
    blocks: Mapping[str, int],
    backend: str,
    arch: str | None,
    file: str | None,
    out: Path | None,
    as_json: bool,
) -> int:
    """Print the rendered sources, or write them below `out`."""
    recipe = for_variant(
        variants.chosen(
            backend=backend,
            arch=arch,
            kernel=kernel,
            dtype=dtype,
            head_dim=head_dim,
            head_dim_v=head_dim_v,
            features=[*features, *(["causal"] if causal else [])],
            score=score,
            blocks=blocks,
        )
    )
    if file is not None and file not in recipe.files:
        raise UsageError(f"--file must be one of {', '.join(sorted(recipe.files))}; got {file!r}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_files(recipe, out)
    if as_json:
        print_json(_described(recipe, out))
    elif out is not None:
        _print_summary(recipe, out)
    elif file is not None:
        print(recipe.files[file], end="")
    else:
        _print_files(recipe)
    return 0


def _described(recipe: Recipe, out: Path | None) -> dict[str, object]:
    return {
        "key": recipe.key,
        "title": recipe.title,
        "shelf": recipe.shelf,
        **recipe.spec,
        "sources": list(recipe.sources),
        "compile_flags": list(recipe.compile_flags),
        "link_flags": list(recipe.link_flags),
        **(
            {"files": dict(recipe.files)}
            if out is None
            else {"directory": str(out), "files": sorted(recipe.files)}
        ),
    }


def _print_summary(recipe: Recipe, out: Path) -> None:
    size = sum(len(text.encode()) for text in recipe.files.values())
    print(f"{count_text(len(recipe.files), 'file')}, {bytes_text(size)}, of {recipe.title} in {out}")
    print(f"compiled: {', '.join(recipe.sources)}")
    print(f"flags:    {shlex.join((*recipe.compile_flags, *recipe.link_flags))}")
    print(f"key:      {recipe.key}")


def _print_files(recipe: Recipe) -> None:
    """What is compiled comes last, after the headers that it includes."""
    names = sorted(recipe.files, key=lambda name: (name in recipe.sources, name))
    print("\n".join(f"// ==> {name} <==\n{recipe.files[name]}" for name in names), end="")
