"""The kernels of a source, as their signatures tell."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .attributes import BUILTINS, Attribute, AttributeList, attribute_list, attribute_lists
from .diagnostics import Diagnostic, MetalCompileError
from .tokens import TokenList

MAX_THREADS = 1024
BUFFERS = 31


@dataclass(frozen=True)
class Parameter:
    name: str
    attribute: str
    index: int  # n of buffer(n) or threadgroup(n); the position in BUILTINS of a builtin
    is_optional: bool
    is_constant: bool = False  # in the address space


@dataclass(frozen=True)
class Kernel:
    name: str  # as the host asks for it
    function: str  # as C++ names it: attention<float, 64>
    parameters: tuple[Parameter, ...]
    max_threads: int
    is_template: bool
    path: str
    line: int
    last_line: int
    body: tuple[int, int]  # positions of its braces


def find_kernels(tokens: TokenList) -> list[Kernel]:
    """Every kernel that a host can ask for: plain kernels, and the instantiations of kernel templates."""
    definitions = _definitions(tokens)
    named: dict[str, Kernel] = {}
    for kernel in [k for k in definitions if not k.is_template] + _instantiations(tokens, definitions):
        if kernel.name in named:
            raise _error(kernel.path, kernel.line, f"there are two kernels named '{kernel.name}'")
        named[kernel.name] = kernel
    return list(named.values())


def find_bodies(tokens: TokenList) -> list[Kernel]:
    """Every kernel definition, templates too."""
    return _definitions(tokens)


def _error(path: str, line: int, message: str) -> MetalCompileError:
    return MetalCompileError([Diagnostic("error", path, line, message)])


def _named(lists: list[AttributeList], name: str) -> Attribute | None:
    return next((a for each in lists for a in each.attributes if a.name == name), None)


def _host_name(lists: list[AttributeList]) -> str | None:
    attribute = _named(lists, "host_name")
    return "".join(part.strip('" ') for part in attribute.argument.split('" "')) if attribute else None


def _is_instantiation(tokens: TokenList, position: int) -> bool:
    return tokens[position].text == "template" and not tokens.is_at(position, "template", "<")


def _statement_end(tokens: TokenList, position: int) -> int:
    return next((p for p in tokens.code(position) if tokens[p].text == ";"), len(tokens))


def _definitions(tokens: TokenList) -> list[Kernel]:
    found: list[Kernel] = []
    skip_to = 0
    for position in tokens.code():
        if position < skip_to:
            continue
        if _is_instantiation(tokens, position):
            skip_to = _statement_end(tokens, position)
            continue
        here = attribute_list(tokens, position)
        if tokens[position].text != "kernel" and not (here and _named([here], "kernel")):
            continue
        kernel = _definition(tokens, position)
        if kernel:
            found.append(kernel)
            skip_to = kernel.body[1]
    return found


def _definition(tokens: TokenList, position: int) -> Kernel | None:
    """Reads from the word or attribute ``kernel``; None for a mere declaration."""
    start, lists = _leading(tokens, position)
    open_ = position
    while tokens[open_].text != "(":
        here = attribute_list(tokens, open_)
        if here:
            lists.append(here)
            open_ = here.end - 1
        open_ = tokens.after(open_)
    name_at = tokens.before(open_)
    close = tokens.closing(open_)
    brace = tokens.after(close)
    while brace < len(tokens) and (here := attribute_list(tokens, brace)):
        lists.append(here)
        brace = tokens.after(here.end - 1)
    if brace >= len(tokens) or tokens[brace].text != "{":
        return None
    end = tokens.closing(brace)
    name = tokens[name_at].text
    threads = _named(lists, "max_total_threads_per_threadgroup")
    return Kernel(
        name=_host_name(lists) or name,
        function=name,
        parameters=_parameters(tokens, name, open_ + 1, close),
        max_threads=int(threads.argument) if threads and threads.argument.isdigit() else MAX_THREADS,
        is_template=tokens[start].text == "template",
        path=tokens[name_at].path,
        line=tokens.line_of(name_at),
        last_line=tokens.line_of(end),
        body=(brace, end),
    )


def _leading(tokens: TokenList, position: int) -> tuple[int, list[AttributeList]]:
    """Where the declaration that contains position starts, and the attributes before position."""
    start = position
    while (before := tokens.before(start)) >= 0 and tokens[before].text not in ("}", ";", "{"):
        start = tokens.opening(before) if tokens[before].text in ")]" else before
    return start, attribute_lists(tokens, start, position)


def _instantiations(tokens: TokenList, definitions: list[Kernel]) -> list[Kernel]:
    """``template [[host_name("f32")]] [[kernel]] void f<float>(…);`` or ``decltype(f<float>) f<float>;``."""
    templates = {kernel.function: kernel for kernel in definitions if kernel.is_template}
    found: list[Kernel] = []
    for position in tokens.code():
        if not _is_instantiation(tokens, position):
            continue
        end = _statement_end(tokens, position)
        name = _host_name(attribute_lists(tokens, position, end))
        if name is None:
            continue
        function = _instantiated(tokens, position, end)
        template = templates.get(function.split("<")[0].strip())
        if template is None:
            raise _error(tokens[position].path, tokens.line_of(position),
                         f"'{name}' instantiates '{function}', which is no kernel template here")  # fmt: skip
        found.append(replace(template, name=name, function=function, line=template.line))
    return found


def _instantiated(tokens: TokenList, position: int, end: int) -> str:
    """The function that an explicit instantiation names: ``f<float>``."""
    word = tokens.after(position)
    while (here := attribute_list(tokens, word)) or tokens[word].text == "kernel":
        word = tokens.after(here.end - 1 if here else word)
    if tokens[word].text == "decltype":
        start, stop = tokens.after(tokens.closing(tokens.after(word))), end
    else:
        start = stop = tokens.after(word)  # the name, after the word void
        while tokens[stop].text not in ("(", ";"):
            stop = tokens.after(tokens.closing(stop) if tokens[stop].text == "<" else stop)
    return tokens.words(start, stop)


def _parameters(tokens: TokenList, kernel: str, start: int, end: int) -> tuple[Parameter, ...]:
    parameters = tuple(_parameter(tokens, kernel, first, last) for first, last in tokens.split(start, end))
    taken = [(p.attribute, p.index) for p in parameters]
    for p in parameters:
        if taken.count((p.attribute, p.index)) > 1 and p.attribute in ("buffer", "threadgroup"):
            raise _error(
                tokens[start].path,
                tokens.line_of(start),
                f"two parameters of '{kernel}' are {p.attribute}({p.index})",
            )
    return parameters


def _parameter(tokens: TokenList, kernel: str, start: int, end: int) -> Parameter:
    lists = attribute_lists(tokens, start, end)
    first = next(tokens.code(start, end))
    path, line = tokens[first].path, tokens.line_of(first)
    words = [p for p in tokens.code(start, lists[0].start if lists else end) if tokens[p].kind == "word"]
    name = tokens[words[-1]].text
    attributes = [a for each in lists for a in each.attributes]
    is_optional = any(a.name == "function_constant" for a in attributes)
    for attribute in attributes:
        if attribute.name in BUILTINS:
            return Parameter(name, attribute.name, BUILTINS.index(attribute.name), is_optional)
        if attribute.name in ("buffer", "threadgroup"):
            if not attribute.argument.isdigit() or int(attribute.argument) >= BUFFERS:
                place = f"{attribute.name}({attribute.argument})"
                raise _error(
                    path, line, f"'{name}' of kernel '{kernel}': {place} is not from 0 to {BUFFERS - 1}"
                )
            is_constant = any(tokens[p].text == "constant" for p in words)
            return Parameter(name, attribute.name, int(attribute.argument), is_optional, is_constant)
    accepted = "[[buffer(n)]], [[threadgroup(n)]], or a builtin such as [[thread_position_in_grid]]"
    raise _error(path, line, f"parameter '{name}' of kernel '{kernel}' has no attribute: it takes {accepted}")
