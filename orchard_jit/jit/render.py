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

    def render_folder(self, folder: str, pattern: str = "*") -> dict[str, str]:
        """Every file of a folder that matches the pattern, by its name without the `.j2`."""
        names = sorted(path.name for path in (templates_directory() / folder).glob(pattern) if path.is_file())
        return {name.removesuffix(".j2"): self.render(f"{folder}/{name}") for name in names}
