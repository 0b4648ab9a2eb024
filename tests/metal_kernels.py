"""A variant's Metal kernels without their host: compiled with every check, and launched as the host does."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from metal_calls import SCORE, Call
from software_mac.metal import Library, Statistics, Traffic, compile_source

from orchard_jit import selection
from orchard_jit.backends.metal import groupings
from orchard_jit.jit import recipe
from orchard_jit.variant import Variant


def select(
    kernel, dtype, head_dim, head_dim_v=None, features=("causal",), arch="apple9", blocks=None
) -> Variant:
    """The variant that a call on a Mac needs; `blocks` in place of those of the table.

    The feature "score" stands for the score function `SCORE`.
    """
    variant = selection.select(
        backend="metal",
        arch=arch,
        kernel=kernel,
        dtype=str(dtype).removeprefix("torch."),
        head_dim=head_dim,
        head_dim_v=head_dim_v or head_dim,
        features=[name for name in features if name != "score"],
        score=SCORE.spec if "score" in features else "",
    )
    return variant.with_blocks(blocks) if blocks else variant


def source_of(variant: Variant) -> str:
    files = recipe.for_variant(variant).files
    return next(files[name] for name in files if name.endswith(".metal"))


def only(flavour: str, source: str) -> str:
    """The source with its "wide" or its "narrow" kernels alone, which compiles in half the time."""
    other = {"wide": "narrow", "narrow": "wide"}[flavour]
    return re.sub(rf'^template \[\[host_name\("\w+_{other}"\).*\n', "", source, flags=re.MULTILINE)


class Kernels:
    """The kernels of a variant, from its own source or from a changed one."""

    def __init__(self, variant: Variant, flavour: str, source: str | None = None) -> None:
        self.variant = variant
        self.flavour = flavour
        text = only(flavour, source or source_of(variant))
        # A changed source breaks no rule of the language that its original keeps: it need not be linted.
        linted = source is None
        self.library = Library(compile_source(text, variant.kernel, checked=True, linted=linted))
        self._records = self.library.kernels
        self.counts: dict[str, tuple[Statistics, Traffic]] | None = None
        """Of each kernel's last launch, where a dict is put here first."""

    def run(self, call: Call, seed: int = 0) -> dict[str, torch.Tensor]:
        """The results of a call; they begin as NaN. A broken rule is a DispatchError."""
        return {"forward": self._forward, "decode": self._decode, "backward": self._backward}[
            self.variant.kernel
        ](call, seed)

    def _decode(self, call: Call, seed: int) -> dict[str, torch.Tensor]:
        shape, grouping = call.shape, groupings(self.variant)["decode"]
        teams, padded = grouping.simdgroups // grouping.split, (self.variant.head_dim_v + 7) // 8 * 8
        heads_a_key = shape.heads // shape.kv_heads
        tiles = -(-heads_a_key * shape.query_length // grouping.rows)
        shares = 320 // (call.batch * shape.kv_heads * tiles)
        shares = max(1, min(shares, shape.key_length // (2 * grouping.columns * teams)))
        parts = call.batch * shape.heads * shape.query_length * shares * teams
        made = {
            "softmaxes": torch.full((parts, 2), torch.nan),
            "partials": torch.full((parts, padded), torch.nan),
            "lse": torch.full_like(call.vectors["grad_lse"], torch.nan),
        }
        self._launch("decode", call, seed, groups=(tiles * shares, shape.kv_heads, call.batch), **made)
        self._launch("combine", call, seed, **made)
        return {"out": call.planes["out"].tensor.clone(), "lse": made["lse"]}

    def _forward(self, call: Call, seed: int) -> dict[str, torch.Tensor]:
        lse = torch.full_like(call.vectors["grad_lse"], torch.nan)
        self._launch("forward", call, seed, lse=lse)
        return {"out": call.planes["out"].tensor.clone(), "lse": lse}

    def _backward(self, call: Call, seed: int) -> dict[str, torch.Tensor]:
        call.planes["out"].fill(call.expected["out"])
        lse, statistics = call.expected["lse"].float(), call.statistics
        for kernel in groupings(self.variant):
            self._launch(kernel, call, seed, lse=lse, statistics=statistics)
        return {
            name: plane.tensor.clone()
            for name, plane in call.planes.items()
            if name.startswith("grad_") and name != "grad_out"
        }

    def _launch(self, kernel: str, call: Call, seed: int, groups=None, **made: torch.Tensor) -> None:
        shape, grouping = call.shape, groupings(self.variant)[kernel]
        of_keys = kernel == "grad_key_value"
        name = f"{kernel}_{self.flavour}" if f"{kernel}_{self.flavour}" in self._records else kernel
        blocks = -(-call.longest[of_keys] // grouping.finished)
        groups = groups or (blocks, shape.kv_heads if of_keys else shape.heads, call.batch)
        if kernel == "grad_bias":
            batch, heads, rows, columns = call.planes["grad_bias"].tensor.shape
            groups = (-(-rows // grouping.rows), -(-columns // grouping.columns), batch * heads)
        launch = (
            name, (groups[0] * grouping.threads, *groups[1:]), grouping.threads,
            self._buffers(name, call, made),
        )  # fmt: skip
        if self.counts is None:
            self.library.dispatch(*launch, seed=seed)
        else:
            self.counts[kernel] = self.library.count(*launch)

    def _buffers(self, name: str, call: Call, made: Mapping[str, torch.Tensor]) -> dict[int, object]:
        """Buffers by their places, as the kernel's signature names them."""
        tensors = {**call.vectors, **made}
        found: dict[int, object] = {}
        for argument in self._records[name].arguments:
            if argument.kind != "buffer":
                continue
            wanted = argument.name if argument.name != "grad" else name.removesuffix(f"_{self.flavour}")
            if wanted in ("params", "numbers"):
                found[argument.index] = getattr(call, wanted)
            elif wanted in call.planes:
                found[argument.index] = call.planes[wanted].bytes
            else:
                found[argument.index] = tensors[wanted].numpy()
        return found
