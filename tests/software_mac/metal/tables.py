"""The C++ that is appended to a prepared source: its kernel records, as include/msl/kernel.h reads them."""

from __future__ import annotations

from collections.abc import Sequence

from .signatures import Parameter
from .source import PreparedSource


def host_tables(source: PreparedSource) -> str:
    """The tables that the engine reads (engine/program.h)."""
    constants = source.function_constants
    lines = ['# 1 "<kernel records>"', "namespace msl_records { namespace {"]
    for number, kernel in enumerate(source.kernels):
        lines += [
            f"constexpr msl::parameter parameters_{number}[] = {{{parameters(kernel.parameters)}}};",
            f"using entry_{number} = msl::entry<decltype({kernel.function}), parameters_{number}>;",
            f"constexpr entry_{number} record_{number}{{}};",
        ]
    lines += ["} }", 'namespace msl_records { extern "C" {']
    lines += [
        _table(
            "software_metal_kernel",
            "msl_kernels",
            [
                f'{{"{k.name}", record_{n}.records, entry_{n}::count, 0, {k.max_threads}}}'
                for n, k in enumerate(source.kernels)
            ],
        ),
        _count("msl_kernel_count", len(source.kernels)),
        _table(
            "msl::void_function",
            "msl_entries",
            [f"&entry_{n}::run<&{k.function}>" for n, k in enumerate(source.kernels)],
        ),
        _table(
            "software_metal_function_constant",
            "msl_function_constants",
            [f'{{"{c.name}", {c.index}, sizeof({c.name})}}' for c in constants],
        ),
        _count("msl_function_constant_count", len(constants)),
        _table("msl::constant_place", "msl_function_constant_values", [f"&{c.name}" for c in constants]),
        _table(
            "msl::constant_place",
            "msl_function_constant_defined",
            [f"&msl_defined_{c.name}" for c in constants],
        ),
    ]
    return "\n".join([*lines, "} }", ""])


def parameters(each: Sequence[Parameter]) -> str:
    rows = [f'{{"{p.name}", "{p.attribute}", {p.index}, {str(p.is_optional).lower()}}}' for p in each]
    return ", ".join(rows or ['{"", "", 0, false}'])


def _table(kind: str, name: str, rows: Sequence[str]) -> str:
    return f"extern const {kind} {name}[]; const {kind} {name}[] = {{{', '.join(rows) or '{}'}}};"


def _count(name: str, value: int) -> str:
    return f"extern const uint {name}; const uint {name} = {value};"
