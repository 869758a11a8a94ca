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
_ALONE: set[str] = set()


def register(suffix: str, *, alone: bool = False) -> Callable[[Render], Render]:
    """Makes a function a format of reports; its text goes into a file with this suffix.

    Args:
        suffix: The suffix, without a dot.
        alone: The file holds the whole report and is written alone, where `--out` has its suffix. Else it is written
            beside Markdown.
    """
    if alone:
        _ALONE.add(suffix)
    return lambda render: _FORMATS.register(suffix, render)


def formats(*, alone: bool = False) -> Mapping[str, Render]:
    """The formats that are written together, or those that are written alone, by suffix: Markdown first."""
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    chosen = (suffix for suffix in _FORMATS if (suffix in _ALONE) == alone)
    return {suffix: _FORMATS[suffix] for suffix in sorted(chosen, key=lambda suffix: (suffix != "md", suffix))}
