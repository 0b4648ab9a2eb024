"""What Metal forbids and C++ accepts, as clang's syntax tree and the calls of the module show it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import clang
from .diagnostics import Diagnostic
from .ir import Module
from .source import PreparedSource
from .tokens import TokenList

Node = dict[str, Any]

_FORBIDDEN_NODES = {
    "GotoStmt": "goto",
    "CXXNewExpr": "operator new",
    "CXXDeleteExpr": "operator delete",
    "LambdaExpr": "a lambda expression (Metal has them from 3.2 on)",
    "GCCAsmStmt": "inline assembly",
}
_FUNCTIONS = ("FunctionDecl", "CXXMethodDecl", "CXXConstructorDecl", "CXXDestructorDecl", "CXXConversionDecl")
_DECLARATIONS = ("VarDecl", "ParmVarDecl", "FieldDecl", *_FUNCTIONS)
_CASTS = (
    "CStyleCastExpr",
    "CXXStaticCastExpr",
    "CXXReinterpretCastExpr",
    "CXXFunctionalCastExpr",
    "CXXConstCastExpr",
)
_SPACE = re.compile(r"address_space\((\d)\)")
_SPACE_WORDS = ("thread", "device", "constant", "threadgroup")  # by their numbers
_SPACE_WORD = re.compile(
    r"\b(device|constant|threadgroup)\b"
)  # clang prints the macro where the source used it
_FUNCTION_POINTER = re.compile(r"\([^()]*[*&][^()]*\)\s*\(|::\*")
_COMPARISONS = ("<", ">", "<=", ">=", "==", "!=")
_CONDITIONS = ("any", "all", "select")  # the functions that take a comparison of vectors
_DOUBLE = re.compile(r"\bdouble\b")


def lint(source: PreparedSource, work: Path, header: Path) -> list[Diagnostic]:
    """Everything that the syntax tree shows. work is a folder for what is made on the way."""
    text = source.text
    tree = _syntax_tree(text, work, header)
    return sorted(set(_Lint(text).walk(tree, inside=(), call="")), key=lambda d: (d.path, d.line))


def lint_module(module: Module, library: str) -> Iterator[Diagnostic]:
    """What only the calls show: recursion."""
    for function in module.recursive_functions():
        if not function.path.startswith((library, "<")):
            yield Diagnostic(
                "error",
                function.path,
                function.line,
                f"'{function.name}' can call itself; Metal has no recursion",
            )


def precompile_library(header: Path) -> None:
    """Makes the precompiled header that the syntax tree is read with."""
    flags = [arg if arg != "c++" else "c++-header" for arg in _flags()]
    clang.run(
        "clang",
        [*flags, "-Xclang", "-fno-pch-timestamp", str(clang.INCLUDE / "metal_stdlib"), "-o", str(header)],
    )


def _syntax_tree(text: str, work: Path, header: Path) -> Node:
    """The tree of the source alone: what comes out of a precompiled header clang does not print."""
    path = work / "lint.cpp"
    path.write_text(text)
    done = clang.run(
        "clang",
        [*_flags(), "-include-pch", str(header), "-fsyntax-only", "-Xclang", "-ast-dump=json", str(path)],
    )
    tree: Node = json.loads(done.stdout)
    return tree


def _flags() -> list[str]:
    return [*clang.host_target(), *clang.LANGUAGE, "-w"]


@dataclass(frozen=True)
class _Place:
    path: str
    line: int


class _Lint:
    def __init__(self, text: str) -> None:
        self._text = text
        tokens = TokenList(text)
        self._places: list[tuple[int, _Place]] = []
        offset = 0
        for token in tokens.items:
            self._places.append((offset, _Place(token.path, token.line)))
            offset += len(token.text)

    def walk(self, node: Node, inside: tuple[str, ...], call: str) -> Iterator[Diagnostic]:
        """inside: the kinds of the nodes around this one; call: the function whose argument it is."""
        kind = node.get("kind", "")
        if node.get("isImplicit") or self._is_generated(node):
            return
        if kind in _FORBIDDEN_NODES:
            yield self._error(node, f"{_FORBIDDEN_NODES[kind]} does not exist in Metal")
        if kind in _DECLARATIONS:
            yield from self._declaration(node, inside)
        if kind in _CASTS:
            yield from self._cast(node)
        if kind == "FloatingLiteral":
            yield from self._literal(node)
        if (
            kind == "BinaryOperator"
            and node.get("opcode") in _COMPARISONS
            and "ext_vector_type" in _type(node)
        ) and call not in _CONDITIONS:
            yield self._error(node, "a comparison of vectors can be an argument of any, all or select only")
        if kind == "CallExpr":
            call = _callee(node)
        for child in node.get("inner", ()):
            if child:
                yield from self.walk(child, (*inside, kind), call)

    def _declaration(self, node: Node, inside: tuple[str, ...]) -> Iterator[Diagnostic]:
        kind, name, type_ = node["kind"], node.get("name", ""), _type(node)
        what = f"'{name}'" if name else "a parameter"
        if kind in _FUNCTIONS:
            type_ = type_.split("(", 1)[0].strip()
        if _DOUBLE.search(type_):
            yield self._error(node, f"{what} has the type {type_}; Metal has no double")
        if kind in _FUNCTIONS:
            if node.get("virtual"):
                yield self._error(node, f"{what} is virtual; Metal has no virtual functions")
            if node.get("variadic"):
                yield self._error(node, f"{what} takes variable arguments; Metal has none")
        elif _FUNCTION_POINTER.search(type_):
            yield self._error(
                node, f"{what} is a pointer to a function; Metal has none outside of function tables"
            )
        if kind == "VarDecl":
            yield from self._storage(node, what, type_, inside)
        yield from self._qualifier(node, what, type_)

    def _storage(self, node: Node, what: str, type_: str, inside: tuple[str, ...]) -> Iterator[Diagnostic]:
        if node.get("tls"):
            yield self._error(node, f"{what} is thread_local; Metal has no such storage")
        is_local = any(kind in _FUNCTIONS for kind in inside)
        is_static = node.get("storageClass") == "static" or not is_local
        if is_static and not re.search(r"address_space\([23]\)", type_):
            kind = "a static variable" if is_local else "a variable of the program"
            yield self._error(
                node, f"{what} is {kind} and so must be in the constant address space: write 'constant'"
            )

    def _qualifier(self, node: Node, what: str, type_: str) -> Iterator[Diagnostic]:
        """Pointers and references say what they lead to: a missing address space is an error in Metal."""
        written = self._written(node)
        if node["kind"] in _FUNCTIONS:
            what = f"the result of {what}"
        if (
            _is_pointer(type_)
            and re.search(r"[*&]", written)
            and not _SPACE.search(type_)
            and not _names_space(written)
        ):
            yield self._error(node, f"{what} is a pointer or reference without an address space: "
                                    "write device, constant, threadgroup or thread")  # fmt: skip

    def _cast(self, node: Node) -> Iterator[Diagnostic]:
        to, operand = _type(node), next((child for child in node.get("inner", ()) if child), None)
        if _DOUBLE.search(to):
            yield self._error(node, "a cast to double; Metal has no double")
        if operand is None:
            return
        from_ = _type(_without_implicit_casts(operand))
        if to.endswith("*") and from_.endswith("*") and _space_of(to) != _space_of(from_):
            yield self._error(
                node, f"a cast from {_SPACE_WORDS[_space_of(from_)]} to {_SPACE_WORDS[_space_of(to)]} memory"
            )
        if node.get("castKind") == "BitCast" and "ext_vector_type" in to and "*" not in to:
            yield self._error(node, "a cast between vectors converts in Metal and reinterprets here: "
                                    "write a constructor such as float4(x), or as_type")  # fmt: skip

    def _literal(self, node: Node) -> Iterator[Diagnostic]:
        type_ = _type(node)
        if type_ == "long double":
            yield self._error(node, "a literal of type long double; Metal has no double")
        elif type_ == "double":
            yield self._warning(
                node,
                f"{self._slice(node)} has no suffix; Metal reads it as float: write {self._slice(node)}f",
            )

    def _written(self, node: Node) -> str:
        """The declaration up to its name, as the source has it: the type and its qualifiers."""
        begin, name_at = _offset(node.get("range", {}).get("begin", {})), _offset(node.get("loc", {}))
        if begin is None or name_at is None:
            return ""
        # The word thread is an empty macro, so clang's range begins after it.
        begin = max(self._text.rfind(sign, 0, begin) for sign in ";{}(,<>") + 1
        return self._text[begin:name_at] if name_at > begin else self._slice(node)

    def _slice(self, node: Node) -> str:
        limits = node.get("range", {})
        begin, end = _offset(limits.get("begin", {})), _offset(limits.get("end", {}))
        if begin is None or end is None:
            return ""
        return self._text[begin : end + _bare(limits["end"]).get("tokLen", 1)]

    def _is_generated(self, node: Node) -> bool:
        offset = _offset(node.get("loc", {}))
        return offset is not None and self._place(offset).path.startswith("<")

    def _place(self, offset: int) -> _Place:
        low, high = 0, len(self._places)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._places[middle][0] <= offset else (low, middle)
        return self._places[low][1] if self._places else _Place("", 0)

    def _at(self, node: Node) -> _Place:
        offset = _offset(node.get("loc", {}))
        if offset is None:
            offset = _offset(node.get("range", {}).get("begin", {}))
        return self._place(offset or 0)

    def _error(self, node: Node, message: str) -> Diagnostic:
        place = self._at(node)
        return Diagnostic("error", place.path, place.line, message)

    def _warning(self, node: Node, message: str) -> Diagnostic:
        place = self._at(node)
        return Diagnostic("warning", place.path, place.line, message)


def _bare(location: Node) -> Node:
    """Of a location in a macro of the library: where the source uses the macro."""
    expansion: Node = location.get("expansionLoc", location)
    return expansion


def _offset(location: Node) -> int | None:
    return _bare(location).get("offset")


def _type(node: Node) -> str:
    type_ = node.get("type", {})
    text = str(type_.get("desugaredQualType", type_.get("qualType", "")))
    return _SPACE_WORD.sub(lambda m: f"address_space({_SPACE_WORDS.index(m[0])})", text)


def _is_pointer(type_: str) -> bool:
    return type_.endswith(("*", "&", "*const", "&&")) or bool(re.search(r"\([*&]+\)", type_))


def _space_of(pointer: str) -> int:
    """The address space that a pointer type leads to."""
    match = _SPACE.search(pointer[:-1].rsplit("*", 1)[-1])
    return int(match[1]) if match else 0


def _names_space(text: str) -> bool:
    return bool(set(re.findall(r"\w+", text)) & set(_SPACE_WORDS))


def _callee(call: Node) -> str:
    callee = _without_implicit_casts(next(iter(call.get("inner", ())), {}))
    return str(callee.get("referencedDecl", {}).get("name", ""))


def _without_implicit_casts(node: Node) -> Node:
    while node.get("kind") == "ImplicitCastExpr" and node.get("inner"):
        node = node["inner"][0]
    return node
