"""Which kernels a call runs, or why none can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from typing_extensions import Unpack

from orchard_jit import call, resolution
from orchard_jit.blocks import origin
from orchard_jit.errors import OrchardError
from orchard_jit.jit import library, recipe
from orchard_jit.options import Options
from orchard_jit.variant import FEATURES, Variant


@dataclass(frozen=True)
class Explanation:
    """What a call of `flash_attention` would do.

    Attributes:
        forward: The variant that the forward runs, in its block sizes; None if no kernel can take the call.
        backward: The same for the backward.
        compiled: Whether both are in the cache, so that nothing has to be compiled.
        reason: Why no kernel can take the call; None if one can.
        blocks: Where each pass has its block sizes from: shipped, tuned, ORCHARD_JIT_BLOCKS or specialize.

    """

    forward: Variant | None
    backward: Variant | None
    compiled: bool
    reason: str | None
    blocks: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether a kernel can take the call."""
        return self.reason is None

    def __str__(self) -> str:
        if self.forward is None or self.backward is None:
            return f"no kernel can take this call: {self.reason}"
        lines = [f"forward   {self.forward}", f"backward  {self.backward}"]
        features = sorted({*self.forward.features, *self.backward.features})
        lines += [f"{name:<9} {FEATURES[name]}" for name in features]
        lines += _score(self.forward.score)
        if {*self.blocks.values()} != {"shipped"}:
            lines.append(f"blocks    {', '.join(f'{name}: {by}' for name, by in self.blocks.items())}")
        lines.append("both are compiled" if self.compiled else "the first call compiles what is missing")
        return "\n".join(lines)


def _score(written: str) -> Iterator[str]:
    """A score function, with its inputs by their numbers: of those the kernel is made."""
    if not written:
        return
    from orchard_jit.score.expression import text_of
    from orchard_jit.score.spec import Spec

    spec = Spec.read(written)
    for stage in spec.stages:
        yield f"score     {text_of(stage.score)}"
    if spec.mask is not None:
        yield f"seen      where {text_of(spec.mask)}"


def explain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Unpack[Options]
) -> Explanation:
    """Which kernels `flash_attention` runs for these arguments, or why none can; nothing is computed.

    Args:
        query, key, value, options: As in `flash_attention`.

    Returns:
        The explanation, true if a kernel can take the call. `print` it.

    Raises:
        OrchardError: The operators themselves can't be loaded.

    """
    try:
        variants = call.variants(resolution.resolve(query, key, value, options))
    except OrchardError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        return Explanation(None, None, compiled=False, reason=str(error).removeprefix("orchard_jit: "))
    compiled = all(library.find(recipe.for_variant(variant)) for variant in variants.values())
    blocks = {name: origin(variant) for name, variant in variants.items()}
    return Explanation(**variants, compiled=compiled, reason=None, blocks=blocks)
