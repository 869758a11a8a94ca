"""What `longeval rope` prints: one method feature by feature, several side by side, or the list of methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from longeval.rope.base import METHODS
from longeval.spec import format_length


def show(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Prints what `analysis.describe` returned: every feature of one method, or a line for each of several."""
    if len(descriptions) == 1:
        _show_one(descriptions[0])
    else:
        _show_several(descriptions)


def list_methods() -> list[dict[str, Any]]:
    """All methods as plain JSON types: name, summary, parameters with defaults (`required` if none), source."""
    return [
        {
            "name": method.name,
            "summary": method.summary,
            "parameters": {
                field.name: "required" if field.default is dataclasses.MISSING else field.default
                for field in dataclasses.fields(method.parameters)
            },
            "source": method.source,
            "uses_factor": method.uses_factor,
            "length_dependent": method.length_dependent,
        }
        for method in METHODS.values()
    ]


def show_methods() -> None:
    """Prints all methods."""
    table = _table("method", "what it does, and its source", "parameters")
    for row in list_methods():
        settings = "\n".join(f"{name}={_default(value)}" for name, value in row["parameters"].items())
        table.add_row(row["name"], f"{row['summary']}\n[dim]{row['source']}[/dim]", settings or "–")
    _print(
        table,
        "Each also as resonance_NAME (resonance for none): wavelengths rounded to whole tokens, Wang et al. 2024.",
        "Set a parameter with --pe-arg METHOD.PARAMETER=VALUE; it goes to METHOD and resonance_METHOD.",
    )


def short_integer(digits: str) -> str:
    """A long decimal integer as 7.058e51; digits are counted, because it may be too large for a float."""
    if len(digits) <= 7:
        return digits
    exponent = len(digits) - 1
    leading = (int(digits[:5]) + 5) // 10
    if leading == 10000:
        leading, exponent = 1000, exponent + 1
    return f"{leading / 1000:.3f}e{exponent}"


def _show_one(description: Mapping[str, Any]) -> None:
    """One method: every feature, then what they amount to."""
    native = description["native_length"]
    integers = description["unique_positions"] is not None
    table = _table("j", "θ (rad/token)", "λ (tokens)", "turns in L", "feature gap", title=_title(description))
    gaps = description["feature_gaps"]
    columns = zip(description["inv_freq"], description["wavelengths"], gaps, strict=True)
    for j, (inv_freq, wavelength, gap) in enumerate(columns):
        table.add_row(
            str(j),
            f"{inv_freq:.6g}",
            f"{wavelength:.0f}" if integers else f"{wavelength:.3f}",
            f"{native / wavelength:.4g}",
            _gap(gap),
            style="dim" if wavelength > native else None,
        )
    _print(
        table,
        f"pre-critical      {description['pre_critical']} of {len(gaps)} features (λ ≤ L before rounding)",
        f"unique positions  {_positions(description)}",
        f"attention factor  {description['attention_factor']:.6g}",
        f"feature gap       {_gap(description['feature_gap'])}, the largest of the pre-critical features",
    )


def _show_several(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Several methods side by side."""
    columns = ("method", "λ ≤ L", "gap", "positions", "attention", "longest λ")
    table = _table(*columns, title=_title({**descriptions[0], "name": "RoPE methods"}))
    for description in descriptions:
        table.add_row(
            description["name"],
            str(description["pre_critical"]),
            _gap(description["feature_gap"]),
            short_integer(description["unique_positions"]) if description["unique_positions"] else "–",
            f"{description['attention_factor']:.5g}",
            f"{max(description['wavelengths']):.6g}",
        )
    _print(
        table,
        "λ ≤ L: pre-critical features, before rounding; gap: the largest gap of these;",
        "positions: how many these features tell apart; attention: attention factor.",
    )


def _title(description: Mapping[str, Any]) -> str:
    """What the numbers are for."""
    target = round(description["factor"] * description["native_length"])
    text = (
        f"{description['name']}: d {description['head_dim']}, base {description['theta']:g}, "
        f"L {format_length(description['native_length'])}, target {format_length(target)}"
    )
    return text if description["length"] == target else f"{text}, n {format_length(description['length'])}"


def _gap(gap: float) -> str:
    """A gap; an exact 0 is told apart from a small one."""
    return "0" if gap == 0 else f"{gap:.4g}"


def _positions(description: Mapping[str, Any]) -> str:
    """Unique positions in words."""
    digits = description["unique_positions"]
    return "– (wavelengths aren't integers)" if digits is None else short_integer(digits)


def _default(value: Any) -> str:
    """A default as the list shows it."""
    if value is None:
        return "formula"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(*columns: str, title: str | None = None) -> Table:
    """An empty table in the command's look: numbers (tables with a title) on the right, names on the left."""
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        left = title is None or column == "method"
        table.add_column(column, justify="left" if left else "right", no_wrap=column in ("method", "parameters"))
    return table


def _print(table: Table, *lines: str) -> None:
    """The table and lines below it, on stdout."""
    console = Console(highlight=False)
    console.print(table)
    for line in lines:
        console.print(line, markup=False)
