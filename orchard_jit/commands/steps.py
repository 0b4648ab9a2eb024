"""The steps of `orchard-jit smoke`: what each does."""

from __future__ import annotations

import os
import time
from functools import cached_property

import torch
from torch.nn import functional

from orchard_jit import binding
from orchard_jit.attention import flash_attention
from orchard_jit.commands import builds, machine, numerics, training
from orchard_jit.commands.console import bytes_text, count_text
from orchard_jit.commands.findings import Finding, of_errors, of_training
from orchard_jit.errors import ToolchainError
from orchard_jit.jit import build, library
from orchard_jit.jit.recipe import Recipe, for_binding, for_variant


class Steps:
    """The steps for one device, in order. `state` says where a long one is."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.state = ""

    @cached_property
    def recipes(self) -> list[Recipe]:
        """Everything that the later steps run, the slowest to compile first."""
        return [for_binding(), *(for_variant(variant) for variant in numerics.variants(self.device))]

    def toolchain(self) -> Finding:
        """A compiler that works, and ninja; a machine that has all kernels already needs neither."""
        try:
            build.check_toolchain()
        except ToolchainError as error:
            if all(library.find(recipe) for recipe in self.recipes):
                return Finding("none, and none is needed: all kernels are compiled already")
            return Finding("missing", fault=str(error))
        tools = {**build.toolchain(), "ninja": machine.ninja_version()}
        fault = machine.compiler_fault()
        return Finding(
            f"{tools['compiler']}, ninja {tools['ninja']}",
            data=tools,
            fault=fault and f"it can't compile: {fault}",
        )

    def render(self) -> Finding:
        """Templates to sources."""
        size = sum(len(text.encode()) for recipe in self.recipes for text in recipe.files.values())
        kernels = len(self.recipes) - 1
        return Finding(
            f"the operators and {count_text(kernels, 'kernel')}, {bytes_text(size)} of source",
            data={"kernels": kernels, "bytes": size},
        )

    def build(self) -> Finding:
        """Sources to libraries, unless the cache has them."""
        outcomes: list[builds.Outcome] = []
        for outcome in builds.build_all(self.recipes, os.cpu_count() or 1):
            outcomes.append(outcome)
            self.state = f"{len(outcomes)} of {len(self.recipes)}"
        built, failed = ([o for o in outcomes if o.state == state] for state in ("built", "failed"))
        cached = len(outcomes) - len(built) - len(failed)
        return Finding(
            f"{len(built)} compiled, {cached} from the cache" + (f", {len(failed)} failed" if failed else ""),
            data={
                "built": len(built),
                "cached": cached,
                "failed": [outcome.recipe.title for outcome in failed],
            },
            fault=failed[0].error if failed else None,  # the others mostly have the same reason
        )

    def load(self) -> Finding:
        """Libraries into this process, and a first call."""
        started = time.perf_counter()
        binding.load()
        loaded = time.perf_counter()
        ones = torch.ones(1, 1, 3, numerics.HEAD_DIM, device=self.device)
        wrong = not torch.equal(flash_attention(ones, ones, ones).cpu(), ones.cpu())
        called = time.perf_counter()
        times = {"load_ms": 1e3 * (loaded - started), "first_call_ms": 1e3 * (called - loaded)}
        return Finding(
            f"operators in {times['load_ms']:.1f} ms, first call in {times['first_call_ms']:.1f} ms",
            data=times,
            fault="attention over equal values must give those values, and does not" if wrong else None,
        )

    def numerics(self) -> Finding:
        """Outputs against float64 and PyTorch."""
        return of_errors(
            list(numerics.forward_errors(self.device)), f"{count_text(len(numerics.FORWARD), 'case')}"
        )

    def gradients(self) -> Finding:
        """Gradients against float64, and `gradcheck` where there is float64."""
        cases = count_text(len(numerics.BACKWARD), "case")
        errors = list(numerics.gradient_errors(self.device))
        if self.device != "cpu":
            return of_errors(errors, f"{cases}; no gradcheck, {self.device} has no float64")
        numerics.gradcheck()
        return of_errors(errors, f"{cases} and gradcheck")

    def training(self) -> Finding:
        """A small GPT on text, with PyTorch's attention and with ours."""

        def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return functional.scaled_dot_product_attention(query, key, value, is_causal=True)

        def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return flash_attention(query, key, value, causal="upper_left")

        def tell(step: int) -> None:
            self.state = f"{step} of {training.STEPS}"

        return of_training(*training.train((sdpa, ours), self.device, training.STEPS, tell))
