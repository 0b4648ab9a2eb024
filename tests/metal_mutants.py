"""Broken copies of Metal kernels, and whether the checker or a comparison with float64 finds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from metal_calls import Call, Shape, wrong
from metal_kernels import Kernels, select, source_of
from software_mac.metal import DispatchError, Status

# Head dims that neither a fragment nor a team divides, and blocks so small that a few rows have many. The
# teams are those of two simdgroups; the variants without them read and write 16 bytes at a time.
HEAD_DIM, HEAD_DIM_V = 20, 12
SINGLE = {"rows": 16, "columns": 16, "simdgroups": 2, "split": 1}
TEAM = {"rows": 8, "columns": 16, "simdgroups": 4, "split": 2}
PREFIXES = {"forward": ("",), "backward": ("dq_", "dkv_"), "decode": ("",)}

FINDINGS = {
    Status.RACE,
    Status.BOUNDS,
    Status.UNINITIALISED,
    Status.DIVERGENCE,
    Status.DEADLOCK,
    Status.UNDEFINED,
}


@dataclass(frozen=True)
class Mutant:
    """A change of the rendered source. `harmless` says why it has no effect, where it has none."""

    name: str
    text: str
    replacement: str
    count: int = 1
    harmless: str = ""

    def applied_to(self, source: str) -> str:
        found = source.count(self.text)
        assert found == self.count, f"{self.name}: {self.text!r} occurs {found} times, not {self.count}"
        return source.replace(self.text, self.replacement)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Program:
    """Kernels in small blocks, and the shapes that tell them from broken ones."""

    kernel: str
    team: bool
    features: str
    shapes: tuple[Shape, ...]

    @property
    def source(self) -> str:
        return source_of(self._variant)

    @property
    def _variant(self):
        sizes = TEAM if self.team else SINGLE
        blocks = {prefix + name: size for prefix in PREFIXES[self.kernel] for name, size in sizes.items()}
        return select(
            self.kernel, torch.float32, HEAD_DIM, HEAD_DIM_V, features=self.features.split(), blocks=blocks
        )

    def finding(self, source: str) -> str:
        """What the checker or the comparison says first; nothing, where all is well."""
        kernels = Kernels(self._variant, "narrow" if self.team else "wide", source)
        for shape in self.shapes:
            call = Call(shape, self._variant, kernels.flavour)
            try:
                results = kernels.run(call, seed=1)
            except DispatchError as error:
                if error.status not in FINDINGS:
                    raise
                return str(error)
            if found := wrong(call, results):
                return f"{shape}: {', '.join(found)}"
        return ""

    def __str__(self) -> str:
        return "-".join((self.kernel, "team" if self.team else "single", *self.features.split()))
