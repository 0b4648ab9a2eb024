"""What a machine that must not compile is told about a library that it does not have."""

from __future__ import annotations

import shlex

from orchard_jit.blocks import shipped
from orchard_jit.jit import roots
from orchard_jit.jit.recipe import Recipe
from orchard_jit.variant import Variant


def message(recipe: Recipe) -> str:
    """Where it has been looked for, and the command that builds it."""
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
