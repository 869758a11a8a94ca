"""Formats of a report: one function each, from a document to text, in a file of its own that this package finds."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping

from longeval.registry import Registry
from longeval.report.document import Document

Render = Callable[[Document], str]
"""Writes a whole document in one format."""

_FORMATS: Registry[Render] = Registry("report format")


def register(suffix: str) -> Callable[[Render], Render]:
    """Makes a function a format of every report; its text goes into a file with this suffix."""
    return lambda render: _FORMATS.register(suffix, render)


def formats() -> Mapping[str, Render]:
    """All formats by suffix: Markdown first, the others by name."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return {suffix: _FORMATS[suffix] for suffix in sorted(_FORMATS, key=lambda suffix: (suffix != "md", suffix))}
