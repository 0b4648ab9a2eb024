"""`orchard-jit render`: the sources of a variant as the compiler would get them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchard_jit.commands import variants
from orchard_jit.commands.console import UsageError, bytes_text, count_text, print_json
from orchard_jit.jit.recipe import Recipe, for_variant, write_files


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
