"""Metal's attributes: ``[[buffer(0)]]``, ``[[thread_position_in_grid]]`` and the like."""

from __future__ import annotations

from dataclasses import dataclass

from .tokens import TokenList

# In the order of enum msl::builtin (include/msl/runtime.h).
BUILTINS = (
    "thread_position_in_grid",
    "thread_position_in_threadgroup",
    "thread_index_in_threadgroup",
    "thread_index_in_simdgroup",
    "simdgroup_index_in_threadgroup",
    "threadgroup_position_in_grid",
    "threadgroups_per_grid",
    "threads_per_grid",
    "threads_per_threadgroup",
    "dispatch_threads_per_threadgroup",
    "threads_per_simdgroup",
    "simdgroups_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup",
    "thread_execution_width",
    "quadgroup_index_in_threadgroup",
    "thread_index_in_quadgroup",
)
_METAL = {
    *BUILTINS,
    "buffer",
    "threadgroup",
    "function_constant",
    "host_name",
    "kernel",
    "max_total_threads_per_threadgroup",
}


@dataclass(frozen=True)
class Attribute:
    name: str
    argument: str  # the text in parentheses, or ""


@dataclass(frozen=True)
class AttributeList:
    """``[[a, b(1)]]`` from position start to end (the position after the last bracket)."""

    start: int
    end: int
    attributes: tuple[Attribute, ...]

    @property
    def is_metal(self) -> bool:
        return any(attribute.name in _METAL for attribute in self.attributes)


def attribute_list(tokens: TokenList, position: int) -> AttributeList | None:
    """The attribute list that begins at position, if one does."""
    if not tokens.is_at(position, "[", "["):
        return None
    inner = tokens.after(position)
    end = tokens.closing(inner)
    attributes = []
    for first, last in tokens.split(inner + 1, end):
        words = list(tokens.code(first, last))
        name, rest = tokens[words[0]].text, words[1:]
        argument = tokens.words(rest[0] + 1, rest[-1]) if rest and tokens[rest[0]].text == "(" else ""
        attributes.append(Attribute(name, argument))
    return AttributeList(position, tokens.closing(position) + 1, tuple(attributes))


def attribute_lists(tokens: TokenList, start: int = 0, end: int | None = None) -> list[AttributeList]:
    found: list[AttributeList] = []
    for position in tokens.code(start, end):
        if found and position < found[-1].end:
            continue
        here = attribute_list(tokens, position)
        if here:
            found.append(here)
    return found
