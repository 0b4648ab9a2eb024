"""Files of kernels: what `prebuild` reads and `record` writes, in TOML.

The names are those of prebuild's options, and a table means every combination of its values:

    [[kernels]]
    head_dim = [64, 128]
    dtype = "bfloat16"           # a list, or one value
    causal = "both"              # true, false or "both"
    features = ["window"]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from orchard_jit.blocks import shipped
from orchard_jit.commands.console import UsageError
from orchard_jit.commands.variants import Grid
from orchard_jit.jit import recording
from orchard_jit.variant import BACKENDS, DTYPES, FEATURES, KERNELS, MAX_HEAD_DIM, Variant

_HEADER = "# Kernels for: orchard-jit prebuild {name}\n"
_CAUSAL = {True: (True,), False: (False,), "both": (False, True)}


def read(path: Path) -> list[Grid]:
    """The grids of a file.

    Raises:
        UsageError: It can't be read; the message names the table and what is wrong.

    """
    toml = _toml()
    try:
        document = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
    tables = document.pop("kernels", None)
    if not isinstance(tables, list) or document:
        found = f", not {', '.join(document)}" if document else ""
        raise UsageError(f"{path}: a file of kernels has tables [[kernels]]{found}")
    return [_grid(f"{path}: [[kernels]] {number}", table) for number, table in enumerate(tables, 1)]


def variants(path: Path) -> list[Variant]:
    """What a file lists: one of kernels (*.toml), or an ORCHARD_JIT_RECORD (*.jsonl).

    Raises:
        UsageError: It can't be read; the message says why.

    """
    if path.suffix != ".jsonl":
        return [variant for grid in read(path) for variant in grid.variants()]
    try:
        return list(recording.read(path))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None


def append(path: Path, variants: Iterable[Variant]) -> int:
    """Add the variants that a file does not cover; it is made if need be. Returns how many there were.

    Raises:
        UsageError: There is a file already, and it can't be read.

    """
    known = {variant for grid in read(path) for variant in grid.variants()} if path.exists() else set()
    new = sorted(set(variants) - known, key=lambda each: (KERNELS.index(each.kernel), str(each)))
    if new or not path.exists():
        with path.open("a", encoding="utf-8") as file:
            file.write("" if known else _HEADER.format(name=path.name))
            for table in _merged(new):
                file.write("\n[[kernels]]\n" + "".join(f"{name} = {text}\n" for name, text in table.items()))
    return len(new)


def _merged(variants: Sequence[Variant]) -> list[dict[str, str]]:
    """Tables, one for the kernels that differ in nothing else."""
    tables: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for variant in variants:
        values = _table(variant)
        tables.setdefault(json.dumps(values), (values, []))[1].append(variant.kernel)
    return [
        {name: _text(value) for name, value in {**values, "kernel": kernels}.items()}
        for values, kernels in tables.values()
    ]


def _table(variant: Variant) -> dict[str, Any]:
    values: dict[str, Any] = {
        "backend": variant.backend,
        "arch": variant.arch,
        "dtype": variant.dtype,
        "head_dim": variant.head_dim,
        "head_dim_v": variant.head_dim_v,
        "causal": "causal" in variant.features,
        "features": [feature for feature in variant.features if feature != "causal"],
        "score": variant.score,
        "blocks": {} if dict(variant.blocks) == shipped(variant) else dict(variant.blocks),
    }
    if variant.head_dim_v == variant.head_dim:
        del values["head_dim_v"]
    return {name: value for name, value in values.items() if value not in ([], "", {})}


def _text(value: Any) -> str:
    """As TOML writes it; a string or a list of them is written as in JSON."""
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{name} = {size}' for name, size in value.items())} }}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _grid(place: str, table: Any) -> Grid:
    if not isinstance(table, dict) or "head_dim" not in table:
        raise UsageError(f"{place} has no head_dim")
    fields = {}
    for name, value in table.items():
        if name not in _READ:
            raise UsageError(f"{place}: nothing reads {name}; there are {', '.join(_READ)}")
        try:
            fields[name] = _READ[name](value)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{place}: {name} {error}") from None
    grid = Grid(**fields)
    try:
        tuple(grid.variants())
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    return grid


def _some(accepted: Iterable[Any], text: str) -> Callable[[Any], list[Any]]:
    known = list(accepted)

    def read(value: Any) -> list[Any]:
        values = value if isinstance(value, list) else [value]
        for each in values:
            if not any(each == one and type(each) is type(one) for one in known):
                raise ValueError(f"must be of {text}, got {each!r}")
        return values

    return read


def _causal(value: Any) -> tuple[bool, ...]:
    if not (isinstance(value, bool) or value == "both"):
        raise ValueError(f'must be true, false or "both", got {value!r}')
    return _CAUSAL[value]


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a string, got {value!r}")
    return value


def _sizes(value: Any) -> dict[str, int]:
    if not isinstance(value, dict) or not all(type(size) is int and size > 0 for size in value.values()):
        raise ValueError(f"must be as {{ q = 64, k = 32 }}, got {value!r}")
    return value


_HEAD_DIMS = _some(range(1, MAX_HEAD_DIM + 1), f"the numbers from 1 to {MAX_HEAD_DIM}")
_OTHER_FEATURES = [name for name in FEATURES if name != "causal"]
_READ: dict[str, Callable[[Any], Any]] = {
    "head_dim": _HEAD_DIMS,
    "head_dim_v": _HEAD_DIMS,
    "dtype": _some(DTYPES, ", ".join(DTYPES)),
    "causal": _causal,
    "kernel": _some(KERNELS, ", ".join(KERNELS)),
    "features": _some(_OTHER_FEATURES, ", ".join(_OTHER_FEATURES)),
    "score": _string,
    "blocks": _sizes,
    "backend": lambda value: _some(BACKENDS, ", ".join(BACKENDS))(value)[0],
    "arch": _string,
}
"""By name, how a value is read."""


def _toml() -> Any:
    """Python's own reader, from 3.11 on, or the one from PyPI that it was made of."""
    for name in ("tomllib", "tomli"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise UsageError("this Python can't read TOML: use Python 3.11 or later, or pip install tomli")
