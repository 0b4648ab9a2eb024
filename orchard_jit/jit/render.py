"""Jinja templates -> source texts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

_PACKAGE = Path(__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def templates_directory() -> Path:
    """In a wheel the templates lie inside the package; in a checkout they lie beside it."""
    inside = _PACKAGE / "templates"
    return inside if inside.is_dir() else _PACKAGE.parent / "templates"


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates_directory()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # the output is C++, not HTML
    )


class Renderer:
    """Renders templates with one set of values. A file without the suffix `.j2` is taken as it is."""

    def __init__(self, **context: Any) -> None:
        self._context = context

    def render(self, template: str) -> str:
        """The text of one template, by its path below the templates folder."""
        if not template.endswith(".j2"):
            return (templates_directory() / template).read_text(encoding="utf-8")
        return _environment().get_template(template).render(self._context)

    def render_all(self, *patterns: str) -> dict[str, str]:
        """The texts of all that match, in the patterns' order, by their names without `.j2`."""
        root = templates_directory()
        paths = [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))]
        return {path.name.removesuffix(".j2"): self.render(path.as_posix()) for path in paths}
