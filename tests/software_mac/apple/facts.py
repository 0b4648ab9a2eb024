"""Are our headers true? What they declare, and what Apple's own metal-cpp says of the same names.

``python -m software_mac.apple.facts <metal_cpp folder>`` writes ``facts.json``: the selectors, types and enum
values of metal-cpp, for the classes that our headers declare. metal-cpp is part of the ``mlx-metal`` wheel:
``pip download --no-deps --platform macosx_14_0_arm64 --only-binary=:all: mlx-metal``, then unzip.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from software_mac.apple.toolchain import INCLUDE, OBJECTIVE_C, clang

# Names of one thing in the two languages; a container's element is any object.
SAME = {
    "BOOL": "bool",
    "MTLGPUAddress": "uint64_t",
    "FastEnumerationState*": "NSFastEnumerationState*",
    "ObjectType": "id",
    "KeyType": "id",
    "_Object*": "id",
    "NSObject*": "id",
    "ObjectType*": "id*",
    "KeyType*": "id*",
    "NSObject**": "id*",
}
FILE = Path(__file__).with_name("facts.json")


@dataclass
class Facts:
    """Selectors by class, each with its types (result first), and enum constants with their values."""

    selectors: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)

    def limited_to(self, other: Facts) -> Facts:
        """These facts, as far as ``other`` speaks of the same selectors and constants."""
        selectors = {
            name: {
                selector: types for selector, types in methods.items() if selector in other.selectors[name]
            }
            for name, methods in self.selectors.items()
            if name in other.selectors
        }
        constants = {name: value for name, value in self.constants.items() if name in other.constants}
        return Facts(selectors, constants)


def plain(spelling: str) -> str:
    """One spelling for a type of either language: ``const MTL::Buffer*`` and ``id<MTLBuffer>`` are one."""
    if "^" in spelling or re.search(r"Handler\b", spelling):
        return "block"
    text = re.sub(r"\b(const|class|struct|enum|__autoreleasing|__strong|__unsafe_unretained)\b", "", spelling)
    text = re.sub(r"\bid<(\w+)>", r"\1*", text)
    text = re.sub(r"(?<=\w)<[^<>]*(<[^<>]*>)?[^<>]*>", "", text)  # NSArray<NSString *>
    text = text.replace("MTL::", "MTL").replace("NS::", "NS").replace("[]", "*").replace(" ", "")
    return SAME.get(text, text)


def declared() -> Facts:
    """What our headers declare, as clang reads them."""
    header = str(INCLUDE / "Metal" / "Metal.h")
    command = [*clang(), *OBJECTIVE_C, "-x", "objective-c++", "-fsyntax-only", "-Xclang", "-ast-dump", header]
    dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    facts = Facts()
    cls = constant = ""
    types: list[str] = []
    for line in dump.splitlines():
        if found := re.match(r"[|`]-ObjC(?:Protocol|Interface)Decl .* (\w+)$", line):
            cls = found[1]
            facts.selectors.setdefault(cls, {})
        elif re.match(r"[|`]-", line):
            types = []
        elif found := re.search(r"-ObjCMethodDecl .* [-+] (\S+) '([^']*)'", line):
            types = [f"{cls}*" if found[2] == "instancetype" else plain(found[2])]
            facts.selectors[cls][found[1]] = types
        elif found := re.match(r"\| [| ] [|`]-ParmVarDecl .*?'([^']*)'", line):
            types.append(plain(found[1]))
        elif found := re.search(r"-EnumConstantDecl .* (\w+) '", line):
            constant = found[1]
        elif constant and (found := re.search(r"-value: Int (-?\d+)", line)):
            facts.constants[constant] = int(found[1])
            constant = ""
    return facts


def published(metal_cpp: Path) -> Facts:
    """What metal-cpp says."""
    facts = Facts()
    for prefix, folder, bridge in (
        ("MTL", "Metal", "MTLHeaderBridge.hpp"),
        ("NS", "Foundation", "NSPrivate.hpp"),
    ):
        text = (metal_cpp / folder / bridge).read_text()
        spelled = dict(re.findall(rf"_{prefix}_PRIVATE_DEF_SEL\(\s*(\w+),\s*\"([^\"]+)\"", text))
        for header in sorted((metal_cpp / folder).glob("*.hpp")):
            _read_header(header.read_text(), prefix, spelled, facts)
    return facts


def _read_header(text: str, prefix: str, spelled: dict[str, str], facts: Facts) -> None:
    method = re.compile(
        rf"^_{prefix}_INLINE (?P<result>[^\n(]*?)\s*{prefix}::(?P<cls>\w+)::\w+"
        rf"\((?P<parameters>[^\n]*)\)[^\n()]*\n"
        rf"\{{(?P<body>.*?)^\}}",
        re.MULTILINE | re.DOTALL,
    )
    for found in method.finditer(text):
        selector = re.search(rf"_{prefix}_PRIVATE_SEL\((\w+)\)", found["body"])
        if selector and selector[1] in spelled:
            types = [_qualified(found["result"], prefix)]
            types += [
                _qualified(re.sub(r"\w+(\[\])?$", r"\1", one), prefix) for one in _split(found["parameters"])
            ]
            facts.selectors.setdefault(prefix + found["cls"], {})[spelled[selector[1]]] = types
    facts.selectors.pop("NSObject", None)  # C++ templates there: the root's methods belong to the language
    for found in re.finditer(rf"_{prefix}_(?:ENUM|OPTIONS)\([^)]*\)\s*\{{(.*?)\}};", text, re.DOTALL):
        for name, value in re.findall(r"(\w+) = ([^,\n]+),", found[1]):
            if re.fullmatch(r"[-\d]+|\d+ << \d+", value.strip()):
                facts.constants[prefix + name] = eval(value)


def _split(parameters: str) -> list[str]:
    """Parameters at commas that stand in no bracket."""
    return [part.strip() for part in re.split(r",(?![^()<>]*[)>])", parameters) if part.strip()]


def _qualified(spelling: str, prefix: str) -> str:
    """Inside namespace NS, metal-cpp leaves the prefix out."""
    names = "String(Encoding)?|Array|Dictionary|Error(Domain)?|Object|U?Integer|ProcessInfo|OperatingSystem"
    if prefix == "NS":
        spelling = re.sub(rf"(?<![\w:])({names})(Version)?\b", r"NS\1\4", spelling)
    return plain(spelling)


if __name__ == "__main__":
    facts = published(Path(sys.argv[1])).limited_to(declared())
    content = {"source": "metal-cpp, in mlx/include/metal_cpp of the mlx-metal wheel", **asdict(facts)}
    FILE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
