"""LLVM IR, as text: from the strict front end's output to a program that runs in ordinary memory.

The front end keeps Metal's address spaces. On a CPU they are all the same memory, and LLVM's thread sanitizer
looks at that memory only, so they are erased here. On the way, the program's variables in threadgroup and
constant memory are put into the table that the engine reads (engine/program.h).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_GLOBAL = re.compile(
    r'^(?P<name>@(?:"[^"]*"|[\w$.]+)) = (?P<linkage>.*?)addrspace\((?P<space>[23])\) '
    r"(?P<kind>global|constant) (?P<rest>.*)$",
    re.M,
)
_FUNCTION = re.compile(
    r'^define [^@\n]*(?P<name>@(?:"[^"]*"|[\w$.]+))\([^\n]*\{\n(?P<body>.*?)^\}', re.M | re.S
)
_SYMBOL = re.compile(r'@(?:"[^"]*"|[\w$.]+)')
_CALLED = re.compile(r'\b(?:call|invoke)\b[^@%\n]*(?:%[\w.]+ )?(@(?:"[^"]*"|[\w$.]+))\(')
_SUBPROGRAM = re.compile(
    r'^(!\d+) = distinct !DISubprogram\(name: "(?P<name>[^"]*)".*?file: !(?P<file>\d+), line: (?P<line>\d+)',
    re.M,
)
_FILE = re.compile(r'^!(\d+) = !DIFile\(filename: "([^"]*)", directory: "([^"]*)"', re.M)
_LENGTH_AND_NAME = re.compile(r"(?=(?<!\d)(\d+)([A-Za-z_]\w*)$)")
_GAP_BYTES = 256  # between threadgroup variables, so that an overrun meets no neighbour


@dataclass(frozen=True)
class Function:
    symbol: str
    name: str
    path: str
    line: int
    body: str

    @cached_property
    def calls(self) -> set[str]:
        return set(_CALLED.findall(self.body))

    @cached_property
    def symbols(self) -> set[str]:
        return set(_SYMBOL.findall(self.body))


@dataclass(frozen=True)
class Variable:
    symbol: str
    name: str
    type: str
    space: int


class Module:
    """The front end's output, read."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def functions(self) -> dict[str, Function]:
        files = file_names(self.text)
        subprograms = {
            m[1]: (m["name"], files.get(m["file"], ""), int(m["line"]))
            for m in _SUBPROGRAM.finditer(self.text)
        }
        found = {}
        for match in _FUNCTION.finditer(self.text):
            debug = re.search(r"!dbg (!\d+) \{$", match[0].split("\n", 1)[0])
            name, path, line = subprograms.get(debug[1] if debug else "", (match["name"], "", 0))
            found[match["name"]] = Function(match["name"], name, path, line, match["body"])
        return found

    @cached_property
    def variables(self) -> list[Variable]:
        return [
            Variable(m["name"], _source_name(m["name"]), _leading_type(m["rest"]), int(m["space"]))
            for m in _GLOBAL.finditer(self.text)
            if "external" not in m["linkage"]
        ]

    @cached_property
    def entries(self) -> list[str]:
        """The entry of each kernel, in their order."""
        line = re.search(r"^@msl_entries = .*$", self.text, re.M)
        return list(_SYMBOL.findall(line[0])[1:]) if line else []

    def reachable(self, symbol: str) -> set[str]:
        """The symbols that the code of a function leads to."""
        seen: set[str] = set()
        ahead = [symbol]
        while ahead:
            here = ahead.pop()
            if here in seen:
                continue
            seen.add(here)
            if here in self.functions:
                ahead += self.functions[here].symbols
        return seen

    def recursive_functions(self) -> Iterator[Function]:
        """Functions that can call themselves, directly or through others."""
        for function in self.functions.values():
            seen: set[str] = set()
            ahead = list(function.calls)
            while ahead:
                here = ahead.pop()
                if here not in seen:
                    seen.add(here)
                    ahead += self.functions[here].calls if here in self.functions else ()
            if function.symbol in seen:
                yield function


def flatten(module: Module, checked: bool) -> str:
    """The module without address spaces, with the tables of the engine."""
    text = _GLOBAL.sub(_define, module.text)
    initialisers = _initialisers(text)
    text = re.sub(r"^@llvm\.global_ctors = .*$", "", text, flags=re.M)
    return _unique_declarations(_erase(text)) + _tables(module, initialisers, checked)


def _source_name(symbol: str) -> str:
    """The name in the source of a mangled variable: tile for @_ZZ4copyvE4tile."""
    for match in _LENGTH_AND_NAME.finditer(symbol):
        length = int(match[1])
        name, rest = match[2][:length], match[2][length:]
        if len(name) == length and re.fullmatch(r"(_\d*)?", rest):
            return name
    return symbol[1:]


def _leading_type(text: str) -> str:
    """The type at the start of text: [4 x [5 x float]], %struct.S, <4 x half>, float."""
    if text[0] in "[<{":
        depth = 0
        for end, character in enumerate(text):
            depth += (character in "[<{") - (character in "]>}")
            if depth == 0:
                return text[: end + 1]
    return text.split(" ", 1)[0].rstrip(",")


def _define(match: re.Match[str]) -> str:
    """Threadgroup variables go to their own section; function constants become variables for the engine."""
    rest, linkage = match["rest"], match["linkage"]
    kind = _leading_type(rest)
    if "external" in linkage:
        return f"{match['name']} = internal global {kind} zeroinitializer{rest[len(kind) :]}"
    if match["space"] == "2":
        return f"{match['name']} = {linkage}{match['kind']} {rest}"
    section = 'section "msl_threadgroup"'
    gap = f"{_gap(match['name'])} = internal global [{_GAP_BYTES} x i8] zeroinitializer, {section}"
    alignment = re.search(r", align \d+", rest)
    aligned = alignment[0] if alignment else ""
    return (
        f'{match["name"]} = internal global {kind} zeroinitializer, section "msl_threadgroup"{aligned}\n{gap}'
    )


def _gap(symbol: str) -> str:
    return f'@"msl_gap.{symbol.strip("@").strip(chr(34))}"'


def _erase(text: str) -> str:
    text = re.sub(r" ?addrspace\([123]\)", "", text)
    text = re.sub(
        r"addrspacecast (\(?)(?=ptr (?!addrspace)[^\n]*? to ptr(?! addrspace))", r"bitcast \1", text
    )
    return re.sub(r"@llvm\.[\w.]+", lambda m: re.sub(r"\.p[123](?=\.|$)", ".p0", m[0]), text)


def _unique_declarations(text: str) -> str:
    seen: set[str] = set()
    kept = []
    for line in text.split("\n"):
        name = _SYMBOL.search(line) if line.startswith("declare ") else None
        if name is None or name[0] not in seen:
            kept.append(line)
        if name:
            seen.add(name[0])
    return "\n".join(kept)


def _initialisers(text: str) -> list[str]:
    line = re.search(r"^@llvm\.global_ctors = .*$", text, re.M)
    return list(_SYMBOL.findall(line[0])[1:]) if line else []


def _tables(module: Module, initialisers: list[str], checked: bool) -> str:
    rows = []
    for kernel, entry in enumerate(module.entries):
        reachable = module.reachable(entry)
        rows += [(v, kernel) for v in module.variables if v.space == 3 and v.symbol in reachable]
    rows += [(variable, -1) for variable in module.variables if variable.space == 2]
    lines = [""]
    for number, (variable, _) in enumerate(rows):
        lines.append(f"@msl_variable_name.{number} = private constant {c_string(variable.name)}")
    values = [
        f"{{ ptr, ptr, i64, i32 }} {{ ptr @msl_variable_name.{n}, ptr {v.symbol}, "
        f"i64 ptrtoint (ptr getelementptr ({v.type}, ptr null, i32 1) to i64), i32 {kernel} }}"
        for n, (v, kernel) in enumerate(rows)
    ]
    gaps = [f"ptr {_gap(v.symbol)}" for v in module.variables if v.space == 3]
    lines += [
        _table("msl_variables", "{ ptr, ptr, i64, i32 }", values),
        _number("msl_variable_count", len(rows)),
        _table("msl_gaps", "ptr", gaps),
        _table("msl_initialisers", "ptr", [f"ptr {symbol}" for symbol in initialisers]),
        _number("msl_initialiser_count", len(initialisers)),
        _number("msl_checked", int(checked)),
    ]
    return "\n".join(lines) + "\n"


def file_names(text: str) -> dict[str, str]:
    """The path of each file of the debug information, by its number. Clang may keep the folder apart."""
    return {
        number: str(Path(folder) / name) if name[:1] != "<" else name
        for number, name, folder in _FILE.findall(text)
    }


def c_string(text: str) -> str:
    raw = text.encode() + b"\0"
    escaped = re.sub(rb'[^ -~]|["\\]', lambda found: b"\\%02X" % ord(found[0]), raw).decode()
    return f'[{len(raw)} x i8] c"{escaped}"'


def _table(name: str, kind: str, rows: list[str]) -> str:
    return f"@{name} = hidden constant [{len(rows)} x {kind}] [{', '.join(rows)}]"


def _number(name: str, value: int) -> str:
    return f"@{name} = hidden constant i32 {value}"
