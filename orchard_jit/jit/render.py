"""Jinja templates -> source texts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from orchard_jit.errors import CacheError
from orchard_jit.jit import files

if TYPE_CHECKING:
    import jinja2

_PACKAGE = Path(__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def templates_directory() -> Path:
    """In a wheel the templates lie inside the package; in a checkout they lie beside it."""
    inside = _PACKAGE / "templates"
    return inside if os.path.isdir(inside) else _PACKAGE.parent / "templates"  # noqa: PTH112  (a hit waits for it)


class Rendering(Mapping[str, str]):
    """Source texts by file name, which are rendered when somebody reads one.

    A cache hit never does: what the texts follow from, `origin`, tells them apart without Jinja, whose
    import and compiling take longer than all the rest of a warm first call.
    """

    def __init__(self, *patterns: str, **context: Any) -> None:
        """Render the templates that match `patterns` with `context`, which must be JSON values.

        A file without the suffix `.j2` is taken as it is.
        """
        self._patterns = patterns
        self._context = context

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the texts follow from: the values, and a SHA-256 of each folder that they could include from.

        With a score function, also that of the modules that print it. The files are read anew for every
        variant: somebody may be editing them.
        """
        origin: dict[str, Any] = {"values": self._context, "templates": self._folders()}
        if self._score:
            origin["score"] = files.folder_sha256(_PACKAGE / "score")
        return origin

    def _folders(self) -> dict[str, str]:
        folders = {pattern.rpartition("/")[0] for pattern in self._patterns}
        return {folder: folder_sha256(folder) for folder in folders}

    @cached_property
    def _templates(self) -> list[Path]:
        root = templates_directory()
        return [
            Path(pattern).parent / path.name
            for pattern in self._patterns
            for path in sorted(root.glob(pattern))
        ]

    @cached_property
    def _texts(self) -> dict[str, str]:
        stated = self.origin["templates"]
        texts = {text_name(path): self._text(path) for path in self._templates}
        if self._folders() != stated:
            raise CacheError("the templates have changed since the key was made of them: call again")
        return texts

    def _text(self, template: Path) -> str:
        if template.suffix != ".j2":
            return (templates_directory() / template).read_text(encoding="utf-8")
        return _environment().get_template(template.as_posix()).render(self._names)

    @property
    def _score(self) -> str:
        variant: Mapping[str, str] = self._context.get("variant", {})
        return variant.get("score", "")

    @cached_property
    def _names(self) -> dict[str, Any]:
        """What the templates see: the values, and `score`, the variant's score function, if it has one."""
        if not self._score:
            return self._context
        from orchard_jit.score.source import Source

        return {**self._context, "score": Source(self._score, self._context["variant"]["backend"])}

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def __iter__(self) -> Iterator[str]:
        return map(text_name, self._templates)

    def __len__(self) -> int:
        return len(self._templates)


def text_name(template: str | PurePath) -> str:
    """What the text of a template is called."""
    return PurePath(template).name.removesuffix(".j2")


def folder_sha256(name: str) -> str:
    """What tells the templates in a folder, by its name below all of them, from those of another version."""
    return files.folder_sha256(templates_directory() / name)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_directory()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is C++, not HTML
    )
