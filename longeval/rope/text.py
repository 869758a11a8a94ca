"""The terminal output of `longeval rope`: the features of one method, a comparison of several, or the list of methods.

It prints the values of `describe`. A legend below each table explains its columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from longeval.rope.base import METHODS
from longeval.values import format_length

_LEAST_WIDTH = 100
_FEATURE_COLUMNS = {
    "θ": "what a token turns this pair of dimensions by, radians",
    "λ": "wavelength, 2π/θ: tokens until it has turned once",
    "turns in L": "how often it turns within the native length L; dim where less than once",
    "stretch": "interpolation: θ before the method over θ after; 1: untouched, s: fully interpolated",
    "rounding": "change of λ by resonance, so that the feature repeats after whole tokens",
    "gap": "how far a position beyond L can be from the most similar one below L; 0: nothing new",
}
_PERIOD_COLUMNS = {
    "p": "period: tokens until it repeats exactly, and the number of its distinct phases",
    "q": "how often it turns in a period, so that λ is p/q",
    "L/p": "how often each phase is seen within the native length L",
}
"""Shown in addition where features repeat."""
_METHOD_COLUMNS = {
    "λ ≤ L": "pre-critical features: they turn at least once in the native length L",
    "gap": "how far these can be, beyond L, from the most similar position below L; 0: nothing new",
    "unique": "how many positions they tell apart, where they repeat exactly",
    "collisions": "positions whose whole row in bfloat16 repeats an earlier one's",
    "attention": "attention factor of cos and sin; logits are multiplied by its square",
    "longest λ": "tokens until the slowest feature has turned once",
}
_ERRORS_TITLE = "Largest error of cos and sin just below a position"
_ERRORS = (
    ("float32_product", "float32", "position · θ in float32, as stock engines compute angles"),
    ("bfloat16_inv_freq", "bfloat16", "the same, after model.to(bfloat16) has cast θ"),
    ("longeval", "longeval", "float64 angles or exact periods, float32 at the end"),
)
"""Keys of `precision`, each with the name that is shown and how the angle is computed."""


def show(descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Prints every feature of one method, or a line for each of several methods."""
    console = Console(highlight=False)
    # A narrow terminal breaks lines, but never cuts digits off.
    console.width = max(console.width, _LEAST_WIDTH)
    if len(descriptions) == 1:
        _show_one(console, descriptions[0])
    else:
        _show_several(console, descriptions)


def _show_one(console: Console, description: Mapping[str, Any]) -> None:
    """Prints one method: every feature, a summary, and the floating-point error."""
    periods, turns = description["periods"], description["turns"]
    columns = _FEATURE_COLUMNS | ({} if periods is None else _PERIOD_COLUMNS)
    # 80 columns suffice: with the columns of periods, the longest title takes two lines, and numbers have fewer digits.
    table = _table(["j", *(name if periods is None else name.replace(" in", "\nin") for name in columns)])
    keys = ("inv_freq", "wavelengths", "rotations", "interpolation", "rounding_errors", "feature_gaps")
    rows = zip(*(description[key] for key in keys), strict=True)
    for j, (inv_freq, wavelength, rotations, interpolation, rounding, gap) in enumerate(rows):
        repeats = () if periods is None else (periods[j], turns[j], f"{description['native_length'] / periods[j]:.3g}")
        table.add_row(
            str(j),
            f"{inv_freq:.6g}" if periods is None else f"{inv_freq:.5g}",
            f"{wavelength:.3f}" if periods is None else f"{wavelength:.6g}",
            f"{rotations:.4g}",
            f"{interpolation:.4g}",
            "–" if periods is None else _percent(rounding),
            _gap(gap) if periods is None else f"{gap:.3g}",
            *map(str, repeats),
            style="dim" if rotations < 1 else None,
        )
    console.print(_title(description["name"], description), style="bold")
    _print(console, table, *_legend(columns), "", *_summary(description), "")
    ends = [format_length(row["positions"]) for row in description["precision"]]
    errors = _table(["angle", *ends, ""], left=1)
    errors.columns[-1].justify = "left"
    for key, name, meaning in _ERRORS:
        errors.add_row(name, *(f"{row[key]:.2g}" for row in description["precision"]), f"[dim]{meaning}[/dim]")
    console.print(_ERRORS_TITLE, style="bold")
    _print(console, errors)


def _show_several(console: Console, descriptions: Sequence[Mapping[str, Any]]) -> None:
    """Prints several methods side by side, and their floating-point errors."""
    first = descriptions[0]
    table = _table(["method", *(name.replace("longest ", "longest\n") for name in _METHOD_COLUMNS)], left=1)
    ends = [format_length(row["positions"]) for row in first["precision"]]
    errors = _table(["method", *(f"{name}\n{end}" for _, name, _ in _ERRORS for end in ends)], left=1)
    for description in descriptions:
        unique, collisions = description["unique_positions"], description["collisions"]["bfloat16"]
        table.add_row(
            description["name"],
            str(description["pre_critical"]),
            f"{description['feature_gap']:.3g}",
            "–" if unique is None else short_integer(unique),
            "–" if collisions is None else str(collisions),
            f"{description['attention_factor']:.5g}",
            f"{max(description['wavelengths']):.0f}",
        )
        cells = (f"{row[key]:.2g}" for key, _, _ in _ERRORS for row in description["precision"])
        errors.add_row(description["name"], *cells)
    console.print(_title("RoPE methods", first), style="bold")
    note = _why_no_gaps(first)
    _print(console, table, *_legend(_METHOD_COLUMNS), *([f"All gaps are {note}."] if note else []), "")
    console.print(_ERRORS_TITLE, style="bold")
    _print(console, errors, *_legend({name: meaning for _, name, meaning in _ERRORS}))


def _title(name: str, description: Mapping[str, Any]) -> str:
    """The title: the method and its geometry."""
    native, factor, length = description["native_length"], description["factor"], description["length"]
    target = round(factor * native)
    title = (
        f"{name}: d {description['head_dim']}, base {description['theta']:.10g}, L {format_length(native)}, "
        f"target {format_length(target)} (s {factor:g})"
    )
    return title if length == target else f"{title}, n {format_length(length)}"


def _summary(description: Mapping[str, Any]) -> list[str]:
    """The summary of a method, one line for each number."""
    factor, unique = description["attention_factor"], description["unique_positions"]
    rows = {
        "pre-critical": f"{description['pre_critical']} of {len(description['wavelengths'])} features: "
        "λ ≤ L before rounding",
        "feature gap": _why_no_gaps(description) or f"{_gap(description['feature_gap'])}, the largest of these",
        "unique positions": "– (features don't repeat exactly)"
        if unique is None
        else f"{short_integer(unique)} are told apart by the pre-critical features",
        "collisions": _collisions(description),
        "attention factor": f"{factor:.6g}" + ("" if factor == 1 else f", logits times {factor**2:.4g}"),
        "mean cos": _decay(description),
    }
    return [f"{name:<16}  {text}" for name, text in rows.items()]


def _why_no_gaps(description: Mapping[str, Any]) -> str:
    """The reason why all gaps are 0, if the target is not longer than L; otherwise empty."""
    native = description["native_length"]
    if round(description["factor"] * native) > native:
        return ""
    return "0: no position lies beyond L (--factor sets a longer target)"


def _gap(gap: float) -> str:
    """A gap; only an exact 0 is written as 0."""
    return "0" if gap == 0 else f"{gap:.4g}"


def _percent(change: float) -> str:
    """A change in percent with two digits, or with one where it is below 0.001%."""
    return f"{100 * change:+.1g}%" if abs(change) < 1e-5 else f"{100 * change:+.2g}%"


def _collisions(description: Mapping[str, Any]) -> str:
    """Collisions in words."""
    counts = description["collisions"]
    target = format_length(round(description["factor"] * description["native_length"]))
    if counts["bfloat16"] is None:
        return f"– ({target} positions are too many to compare)"
    text = f"{counts['float32']} of {target} positions in float32, {counts['bfloat16']} in bfloat16"
    if counts["pre_critical"] is not None:
        text += f", {counts['pre_critical']} by the pre-critical features alone"
    return text


def _decay(description: Mapping[str, Any]) -> str:
    """The mean cosine at a few distances."""
    values = dict(zip(description["decay"]["distances"], description["decay"]["mean_cos"], strict=True))
    round_ones = sorted({1, 16, 256, description["native_length"], max(values)} & values.keys())
    return ", ".join(f"{values[d]:.3f} at {format_length(d) if d else 0}" for d in round_ones) + " tokens apart"


def short_integer(digits: str) -> str:
    """A decimal integer of more than 7 digits as 7.058e51; it may be too large for a float."""
    return digits if len(digits) <= 7 else f"{Decimal(digits):.3e}".replace("e+", "e")


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
    table = _table(["method", "what it does, and its source", "parameters"], left=3)
    for row in list_methods():
        settings = "\n".join(f"{name}={_default(value)}" for name, value in row["parameters"].items())
        table.add_row(row["name"], f"{row['summary']}\n[dim]{row['source']}[/dim]", settings or "–")
    _print(
        Console(highlight=False),
        table,
        "Each also as resonance_NAME (resonance for none): features repeat after whole tokens, Wang et al. 2024.",
        "Set a parameter with --pe-arg METHOD.PARAMETER=VALUE; it goes to METHOD and resonance_METHOD.",
        "--pe-arg resonance.max_period=N goes to every resonance_NAME: a feature may turn several times in up to N "
        "tokens (native: L; rounded, the default: once, wavelengths rounded to whole tokens).",
    )


def _default(value: Any) -> str:
    """A default value in the list of methods."""
    if value is None:
        return "formula"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _legend(columns: Mapping[str, str]) -> list[str]:
    """The legend, one line for each column."""
    width = max(map(len, columns))
    return [f"{name:<{width}}  {meaning}" for name, meaning in columns.items()]


def _table(columns: Sequence[str], *, left: int = 0) -> Table:
    """An empty table; the first `left` columns hold names and are aligned left, the others hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        whole = column in ("method", "parameters")
        table.add_column(column, justify="left" if index < left else "right", no_wrap=whole)
    return table


def _print(console: Console, table: Table, *lines: str) -> None:
    """Prints a table, and below it an empty line and the given ones."""
    console.print(table)
    for line in ("", *lines) if lines else ():
        console.print(line, markup=False, soft_wrap=True)
