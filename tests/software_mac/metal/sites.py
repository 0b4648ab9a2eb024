"""Source positions for the engine.

The optimised program calls the engine: at simd operations and barriers, and in checked programs at each
memory access. Each call gets the number of its source position, and a table says what the numbers mean. So a
message of the engine names the user's line, and no debugger is needed to find it.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from .ir import c_string, file_names

_LOCATION = re.compile(
    r"^!(\d+) = (?:distinct )?!DILocation\(line: (\d+)(?:, column: \d+)?, "
    r"scope: !(\d+)(?:, inlinedAt: !(\d+))?",
    re.M,
)
_SCOPE = re.compile(r"^!(\d+) = (?:distinct )?!DILexicalBlock(?:File)?\(scope: !(\d+)", re.M)
_SUBPROGRAM = re.compile(r'^!(\d+) = distinct !DISubprogram\(name: "([^"]*)".*?file: !(\d+)', re.M)
_BLOCK_FILE = re.compile(r"^!(\d+) = (?:distinct )?!DILexicalBlock(?:File)?\(scope: !\d+, file: !(\d+)", re.M)

_DEBUG = re.compile(r", !dbg !(\d+)")
_ENGINE_CALL = re.compile(r"\bcall\b.*@msl_\w+\(.*\bi32 (?:noundef )?-1\)")
_ACCESS = re.compile(
    r"call void @__tsan_(?:unaligned_)?(?P<kind>read|write)(?P<bytes>\d+)"
    r"\(ptr (?P<address>.*)\)(?P<rest>[^()]*)$"
)
_ALIGN = re.compile(r"\b(?:load|store)\b.*, align (\d+)")
_OTHER = re.compile(
    r"call (?P<type>void|ptr) @(?P<name>__tsan_mem\w+|__ubsan_handle_\w+)"
    r"\((?P<arguments>.*)\)(?P<rest>[^()]*)$"
)
_OTHER_NAMES = {
    "__tsan_memcpy": "msl_check_memcpy",
    "__tsan_memmove": "msl_check_memmove",
    "__tsan_memset": "msl_check_memset",
    "__ubsan_handle_out_of_bounds": "msl_check_index",
    "__ubsan_handle_divrem_overflow": "msl_check_division",
}
_DECLARATIONS = """
declare void @msl_check_read(ptr, i64, i64, i32)
declare void @msl_check_write(ptr, i64, i64, i32)
declare ptr @msl_check_memcpy(ptr, ptr, i64, i32)
declare ptr @msl_check_memmove(ptr, ptr, i64, i32)
declare ptr @msl_check_memset(ptr, i32, i64, i32)
declare void @msl_check_index(ptr, i64, i32)
declare void @msl_check_division(ptr, i64, i64, i32)
"""


class _Positions:
    """The source positions of a module, numbered as they are asked for."""

    def __init__(self, text: str, library: str) -> None:
        self._library = library
        self._locations = {m[1]: (int(m[2]), m[3], m[4]) for m in _LOCATION.finditer(text)}
        self._parents = dict(_SCOPE.findall(text))
        self._subprograms = {m[1]: (m[2], m[3]) for m in _SUBPROGRAM.finditer(text)}
        self._block_files = dict(_BLOCK_FILE.findall(text))
        self._files = file_names(text)
        self._numbers: dict[str, int] = {}
        self.texts: list[str] = []

    def number(self, location: str | None) -> int:
        if location is None or location not in self._locations:
            return -1
        if location not in self._numbers:
            self._numbers[location] = len(self.texts)
            self.texts.append(self._text(location))
        return self._numbers[location]

    def _text(self, location: str) -> str:
        frames = []
        here: str | None = location
        while here is not None:
            line, scope, here = self._locations[here]
            path, function = self._scope(scope)
            if not path.startswith((self._library, "<")):
                name = function if function.startswith("operator") else function.split("<")[0]
                frames.append(f"{PurePath(path).name}:{line} in '{name}'")
        return ", called from ".join(frames) or "a line of the library"

    def _scope(self, scope: str) -> tuple[str, str]:
        file = self._block_files.get(scope)
        while scope in self._parents:
            scope = self._parents[scope]
        function, its_file = self._subprograms.get(scope, ("", ""))
        return self._files.get(file or its_file, ""), function


def number_sites(text: str, library: str) -> str:
    """The optimised module, with the calls of the engine numbered and the table of the numbers."""
    positions = _Positions(text, library)
    text = re.sub(r"^define internal void @tsan\.module_ctor\(.*?^\}", "", text, flags=re.M | re.S)
    text = re.sub(
        r"^(@llvm\.(?:global_ctors|used) = .*|declare .*@__(?:tsan|ubsan)_.*)$", "", text, flags=re.M
    )
    lines = text.split("\n")
    numbered = [
        _number_line(line, lines[i + 1 : i + 4], positions) if "call" in line else line
        for i, line in enumerate(lines)
    ]
    return "\n".join(numbered) + _DECLARATIONS + _table(positions.texts)


def _number_line(line: str, following: list[str], positions: _Positions) -> str:
    def site() -> int:
        debug = _DEBUG.search(line)
        return positions.number(debug[1] if debug else None)

    if _ENGINE_CALL.search(line):
        return re.sub(r"\bi32 (?:noundef )?-1\)", f"i32 {site()})", line)
    access = _ACCESS.search(line)
    if access:
        align = next((m[1] for m in map(_ALIGN.search, following) if m), "1")
        values = f"ptr {access['address']}, i64 {access['bytes']}, i64 {align}, i32 {site()}"
        call = f"call void @msl_check_{access['kind']}({values})"
        return line[: access.start()] + call + access["rest"]
    other = _OTHER.search(line)
    if other and other["name"] in _OTHER_NAMES:
        call = f"call {other['type']} @{_OTHER_NAMES[other['name']]}({other['arguments']}, i32 {site()})"
        return line[: other.start()] + call + other["rest"]
    return line


def _table(texts: list[str]) -> str:
    names = [f"@msl_site.{n} = private constant {c_string(text)}" for n, text in enumerate(texts)]
    pointers = ", ".join(f"ptr @msl_site.{n}" for n in range(len(texts)))
    table = f"@msl_sites = hidden constant [{len(texts)} x ptr] [{pointers}]"
    return "\n".join([*names, table, f"@msl_site_count = hidden constant i32 {len(texts)}", ""])
