"""Our Apple headers say what Apple's own say: every selector, type and enum value, against metal-cpp."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("ziglang")

from software_mac.apple import facts

# What metal-cpp leaves out: literals, subscripts, and the commonest of NSString.
BEYOND = {
    "NSString": {
        "stringWithUTF8String:",
        "stringWithFormat:",
        "initWithUTF8String:",
        "initWithBytes:length:encoding:",
    },
    "NSArray": {"objectAtIndexedSubscript:"},
    "NSDictionary": {"objectForKeyedSubscript:", "allKeys"},
}


@pytest.fixture(scope="module")
def declared() -> facts.Facts:
    return facts.declared()


@pytest.fixture(scope="module")
def published() -> facts.Facts:
    content = json.loads(facts.FILE.read_text())
    return facts.Facts(content["selectors"], content["constants"])


def test_selectors_and_types(declared: facts.Facts, published: facts.Facts) -> None:
    checked = 0
    for cls, methods in declared.selectors.items():
        for selector, types in methods.items():
            if cls == "NSObject" or selector in BEYOND.get(cls, ()):
                continue
            assert published.selectors.get(cls, {}).get(selector) == types, f"{cls} {selector}"
            checked += 1
    assert checked > 150


def test_enum_values(declared: facts.Facts, published: facts.Facts) -> None:
    assert declared.constants == published.constants
    assert declared.constants["MTLGPUFamilyApple9"] == 1009
