"""Preparation: Metal source to C++ that clang can read, on the same lines.

The source is preprocessed first, so that the tokens of macros are seen too. Then a few tokens change:

- the attributes of Metal go; what they say is kept in the kernel records,
- a threadgroup variable of a kernel's body becomes static,
- a function constant becomes a variable that the host sets (or a value, if values are given),
- ``float4(…)`` and ``vec<T, 4>(…)`` become ``msl::make<…>(…)``, and ``1.0h`` becomes ``half(1.0f)``.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import clang
from .attributes import attribute_lists
from .diagnostics import Diagnostic, MetalCompileError, errors, parse
from .signatures import Kernel, find_bodies, find_kernels
from .tokens import TokenList

_SCALARS = (
    "bool",
    "char",
    "uchar",
    "short",
    "ushort",
    "int",
    "uint",
    "long",
    "ulong",
    "half",
    "bfloat",
    "float",
)
_VECTORS = {f"{prefix}{scalar}{n}" for scalar in _SCALARS for n in (2, 3, 4) for prefix in ("", "packed_")}
_SPACES = ("device", "constant", "threadgroup", "thread", "const")
_HEADERS = (
    "metal_stdlib", "metal_atomic", "metal_common", "metal_compute", "metal_config", "metal_extended_vector",
    "metal_geometric", "metal_integer", "metal_limits", "metal_math", "metal_numeric", "metal_relational",
    "metal_simdgroup", "metal_simdgroup_matrix", "metal_type_traits", "metal_types", "metal_uniform",
)  # fmt: skip
_SUFFIX = re.compile(r"(h|bf)$", re.IGNORECASE)
_SUFFIXED = {"h": "half", "bf": "bfloat"}


@dataclass(frozen=True)
class FunctionConstant:
    name: str
    index: int


@dataclass(frozen=True)
class PreparedSource:
    text: str
    kernels: tuple[Kernel, ...]
    bodies: tuple[Kernel, ...]
    function_constants: tuple[FunctionConstant, ...]

    def kernel_at(self, path: str, line: int) -> str | None:
        """The kernel whose definition contains a line."""
        return next(
            (k.function for k in self.bodies if k.path == path and k.line <= line <= k.last_line), None
        )


def prepare(path: Path, constants: Mapping[str, bool | int | float] | None = None,
            include: tuple[Path, ...] = ()) -> PreparedSource:  # fmt: skip
    """Prepares a file. With constants, the function constants that they name become these values."""
    tokens = TokenList(preprocess(path, include))
    try:
        return _Preparation(tokens, constants).run()
    except ValueError as error:
        raise MetalCompileError([Diagnostic("error", str(path), 1, str(error))]) from error


def preprocess(path: Path, include: tuple[Path, ...] = ()) -> str:
    """Expands the macros and includes of the source; those of the Metal library stay for the compiler."""
    with tempfile.TemporaryDirectory(prefix="software_mac-") as folder:
        for header in _HEADERS:
            (Path(folder) / header).touch()
        flags = [*clang.LANGUAGE, *(f"-I{each}" for each in include), "-isystem", folder]
        done = clang.run("clang", [*clang.host_target(), *flags, "-E", str(path)], check=False)
        if done.returncode:
            found = errors(parse(done.stderr, folder))
            raise MetalCompileError(found or [Diagnostic("error", str(path), 1, done.stderr)])
        text, includes = re.subn(rf'^# \d+ "{re.escape(folder)}/.*\n', "", done.stdout, flags=re.M)
        if not includes:
            raise MetalCompileError(
                [Diagnostic("error", str(path), 1, "the source does not include <metal_stdlib>")]
            )
        return re.sub(r'^(# \d+ "[^"]*")[ \d]*$', r"\1", text, flags=re.M)


class _Preparation:
    def __init__(self, tokens: TokenList, constants: Mapping[str, bool | int | float] | None) -> None:
        self.tokens = tokens
        self.values = constants or {}
        self.function_constants: list[FunctionConstant] = []

    def run(self) -> PreparedSource:
        tokens = self.tokens
        kernels, bodies = find_kernels(tokens), find_bodies(tokens)
        self._make_threadgroup_variables_static(bodies)
        self._turn_function_constants_into_variables()
        self._remove_attributes()
        self._turn_constructors_into_calls()
        self._spell_out_literals()
        return PreparedSource(tokens.text(), tuple(kernels), tuple(bodies), tuple(self.function_constants))

    def _error(self, position: int, message: str) -> MetalCompileError:
        token = self.tokens[position]
        return MetalCompileError([Diagnostic("error", token.path, token.line, message)])

    def _make_threadgroup_variables_static(self, bodies: list[Kernel]) -> None:
        tokens = self.tokens
        for position in list(tokens.code()):
            if tokens[position].text != "threadgroup" or not self._is_variable(position):
                continue
            if not any(first < position < last for first, last in (kernel.body for kernel in bodies)):
                raise self._error(
                    position, "a threadgroup variable can be declared in the body of a kernel only"
                )
            tokens[position].text = "MSL_THREADGROUP_VARIABLE threadgroup"

    def _is_variable(self, position: int) -> bool:
        """Whether the word threadgroup at position begins the declaration of an object, not of a pointer."""
        tokens = self.tokens
        before = tokens.before(position)
        if before >= 0 and tokens[before].text not in (";", "{", "}"):
            return False
        here = tokens.after(position)
        while here < len(tokens):
            text = tokens[here].text
            if text in ("<", "["):
                here = tokens.closing(here)
            elif text in ("*", "&", "(", ")"):
                return False
            elif text == "=":
                raise self._error(position, "a threadgroup variable cannot have an initialiser")
            elif text == ";":
                return True
            here = tokens.after(here)
        return False

    def _turn_function_constants_into_variables(self) -> None:
        tokens = self.tokens
        for name_at, start, end, index in list(self._find_function_constants()):
            self._declare_function_constant(tokens[name_at].text, index, start, end)
        for position in tokens.code():
            if tokens.is_at(position, "is_function_constant_defined", "("):
                name_at = tokens.after(tokens.after(position))
                tokens[name_at].text = "msl_defined_" + tokens[name_at].text
                tokens[position].text = ""

    def _find_function_constants(self) -> Iterator[tuple[int, int, int, int]]:
        """The positions of the name, the start and the end of each declaration, and its index."""
        for each in attribute_lists(self.tokens):
            attribute = next((a for a in each.attributes if a.name == "function_constant"), None)
            name_at = self.tokens.before(each.start)
            start = self._statement_start(name_at)
            if attribute is None or self.tokens[start].text != "constant":
                continue
            if not attribute.argument.isdigit():
                raise self._error(name_at, f"function_constant({attribute.argument}) is not a number")
            yield name_at, start, each.end, int(attribute.argument)

    def _statement_start(self, position: int) -> int:
        tokens = self.tokens
        while (before := tokens.before(position)) >= 0 and tokens[before].text not in (
            ";",
            "{",
            "}",
            ",",
            "(",
        ):
            position = before
        return position

    def _declare_function_constant(self, name: str, index: int, start: int, end: int) -> None:
        tokens = self.tokens
        if name in self.values:
            value = self.values[name]
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            tokens[tokens.after(end - 1)].text = f"= {text};"
            tokens[start].text = f"constant bool msl_defined_{name} = true; constant"
        else:
            self.function_constants.append(FunctionConstant(name, index))
            tokens[start].text = f"extern constant bool msl_defined_{name}; extern constant"

    def _remove_attributes(self) -> None:
        tokens = self.tokens
        for each in attribute_lists(tokens):
            if each.is_metal:
                for position in tokens.code(each.start, each.end):
                    tokens[position].text = tokens[position].text[1:] if position == each.end - 1 else ""
        for position in tokens.code():
            if tokens[position].text == "kernel":
                tokens[position].text = ""

    def _turn_constructors_into_calls(self) -> None:
        tokens = self.tokens
        for position in list(tokens.code()):
            before = tokens.before(position)
            if before >= 0 and tokens[before].text in (*_SPACES, "operator"):
                continue
            if tokens[position].text in _VECTORS and tokens.is_at(tokens.after(position), "("):
                tokens[position].text = f"msl::make<{tokens[position].text}>"
            elif tokens.is_at(position, "vec", "<"):
                end = tokens.closing(tokens.after(position))
                if tokens.is_at(tokens.after(end), "("):
                    qualifier = self._qualifier(position)
                    tokens[qualifier].text = f"msl::make<{tokens[qualifier].text}"
                    tokens[end].text = ">>"

    def _spell_out_literals(self) -> None:
        for token in self.tokens.items:
            suffix = (
                _SUFFIX.search(token.text)
                if token.kind == "number" and token.text[:2].lower() != "0x"
                else None
            )
            if suffix:
                token.text = f"{_SUFFIXED[suffix[0].lower()]}({token.text[: suffix.start()]}f)"

    def _qualifier(self, position: int) -> int:
        """Where the qualified name that ends at position starts: ``metal::vec``."""
        tokens = self.tokens
        while tokens.is_at(tokens.before(position), "::"):
            position = tokens.before(tokens.before(position))
        return position
