"""A rich console on which text is only ever text; apart from `terminal`, since rich takes its time to import."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from longeval.printable import printable


class PrintableConsole(Console):
    """A console that shows control characters in texts as escapes; its own, which move the cursor, stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See `rich.console.Console.render`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text, keep="\n"), segment.style)
