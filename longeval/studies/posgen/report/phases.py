"""Accuracy by the number of distinct phases: does it matter how many values a feature has, or that it repeats?

Wang et al. 2024 (arXiv 2403.00071) explain the gain of Resonance RoPE by features that repeat exactly. Rounding also
leaves a fast feature few distinct values, which training sees often. Resonance forms with several turns
(`--pe-arg resonance.max_period=N`) repeat as exactly with more values, so a table that has them can tell the two
apart: from few phases (the paper's rounding) to as many as there are positions (the method without resonance).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from statistics import geometric_mean
from typing import Any

import numpy as np

from longeval.looks import base_method, is_resonance
from longeval.report.charts import WIDTH_INCHES, Axis, Chart, Line, Panel
from longeval.report.document import Block, Figure, Heading, Table, TableCell, prose
from longeval.report.lines import line_label, line_style, padded
from longeval.report.numbers import counted
from longeval.report.tables import method_row
from longeval.rope.analysis.description import pre_critical
from longeval.rope.base import METHODS, Geometry, RopeTable
from longeval.rope.build import build_table, parse_method_name, read_arguments
from longeval.stats.seeds import SeedMean, over_seeds
from longeval.studies.posgen.report.tables import OOD, PosGenRow, PosGenTable, columns, difference_cell, mean_cell

_LEAST_FORMS = 3
"""With fewer forms of one base there is no curve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A base method or one of its resonance forms."""

    row: PosGenRow
    phases: float
    """Number of distinct phases in training: the geometric mean over the pre-critical features."""
    tables: tuple[RopeTable, RopeTable]
    """The tables of training and evaluation."""

    def same_as(self, other: Form) -> bool:
        """Whether both forms are the same encoding, such as `max_period=rounded` and one that changes no feature."""
        return all(one.same_as(its) for one, its in zip(self.tables, other.tables, strict=True))


def phases_blocks(table: PosGenTable, slug: str) -> list[Block]:
    """The table and the figure of accuracy by number of phases; none where no base has three forms or more."""
    families = families_of(table)
    if not families:
        return []
    text = (
        f"How many distinct phases a feature takes in the {_train_window(table.params)} positions of training, as the "
        f"geometric mean over the features with a wavelength of at most {table.params['native_length']} tokens. "
        "Resonance forms repeat exactly whatever that number is, so a gain that comes from repetition would be the "
        "same in all of them. A feature without resonance has another phase at each position."
    )
    shown = [form.row for forms in families for form in forms]
    keys = set(map(_family, shown))
    if same := [row.name for row in table.rows if _family(row) in keys and row not in shown]:
        text += f" Left out because another form has the same table: {', '.join(same)}."
    rows = [
        method_row(
            form.row.row,
            [
                TableCell(text=f"{form.phases:.1f}"),
                *(mean_cell(form.row.runs[task].mean(OOD), num_seeds=len(table.seeds)) for task in table.tasks),
            ],
        )
        for forms in families
        for form in forms
    ]
    blocks: list[Block] = [
        Heading(text="Accuracy by number of phases"),
        Table(columns=columns(["phases", *table.tasks]), rows=tuple(rows), caption=text),
    ]
    blocks += _slope_blocks(table, families)
    description = "OOD accuracy by number of distinct phases"
    blocks.append(Figure(name=f"phases-{slug}", description=description, chart=phases_figure(table, families)))
    return blocks


def families_of(table: PosGenTable) -> list[list[Form]]:
    """The forms of each base method (of equal parameters and factor) by number of phases, where they give a curve."""
    families: dict[tuple[object, ...], list[Form]] = {}
    for row in table.rows:
        if base_method(row.row.pe) not in METHODS:
            continue
        own = families.setdefault(_family(row), [])
        form = _form(row)
        if not any(form.same_as(other) for other in own):
            own.append(form)
    by_phases = [sorted(own, key=lambda form: form.phases) for own in families.values() if len(own) >= _LEAST_FORMS]
    return [own for own in by_phases if not isclose(own[0].phases, own[-1].phases)]


def _family(row: PosGenRow) -> tuple[object, ...]:
    """What the forms of one base method share."""
    return base_method(row.row.pe), row.row.of_base, row.row.factor


def _form(row: PosGenRow) -> Form:
    """A row with its number of phases, from the table that its cells were trained with."""
    params = next(iter(row.row.cells.values())).params
    window, start = _train_window(params), bool(params.get("start_token"))
    geometry = Geometry(
        head_dim=int(params["head_dim"]),
        theta=float(params["theta"]),
        native_length=int(params["native_length"]),
        factor=row.row.factor if isinstance(row.row.factor, float | int) else 1.0,
    )

    def built(pe: str, length: int, *, unrounded: bool = False) -> RopeTable:
        name = parse_method_name(pe)
        given = json.loads(row.row.method).items()
        # A method that is off in training (regime `swapped`) has parameters that its stand-in doesn't.
        arguments = {key: value for key, value in given if key in name.parameter_fields}
        parameters, resonance = read_arguments(name, arguments)
        used = name.base if unrounded else name.canonical
        return build_table(used, geometry, parameters, length, resonance=resonance)

    pe = str(params.get("trained_with", row.row.pe))
    trained = built(pe, window)
    periods_F = np.full(geometry.num_features, window) if trained.period_F is None else trained.period_F
    features_F = pre_critical(built(pe, window, unrounded=True), geometry)
    phases = np.minimum(periods_F, window)[features_F].tolist() or [window]
    evaluated = built(row.row.pe, int(params["test_length"]) + start)
    return Form(row=row, phases=geometric_mean(phases), tables=(trained, evaluated))


def _train_window(params: Mapping[str, Any]) -> int:
    """Positions of training, with the start token."""
    return int(params["train_length"]) + bool(params.get("start_token"))


def slope(forms: Sequence[Form], task: str) -> SeedMean | None:
    """Change of OOD accuracy, in points, for twice as many phases: a least-squares line for each seed.

    Only seeds that all forms have count. The interval is Student's over the seeds.
    """
    phases = np.log2([form.phases for form in forms])
    values = [form.row.values(task) for form in forms]
    seeds = set.intersection(*(set(found) for found in values))
    slopes = {seed: float(np.polyfit(phases, [found[seed] for found in values], 1)[0]) for seed in sorted(seeds)}
    return over_seeds(slopes)


def _slope_blocks(table: PosGenTable, families: Sequence[Sequence[Form]]) -> list[Block]:
    """The table of slopes."""
    text = (
        "Change of OOD accuracy in points for twice as many phases: the slope of a line through the forms of each "
        "seed, mean over seeds with the 95% t-interval. Bold: the interval excludes 0."
    )
    rows = []
    for forms in families:
        cells = [difference_cell(slope(forms, task), num_seeds=len(table.seeds)) for task in table.tasks]
        first = forms[0].row.row
        rows.append(method_row(first, cells, [prose("`{}`, {}", base_method(first.pe), counted(len(forms), "form"))]))
    return [Table(columns=columns(table.tasks, "base"), rows=tuple(rows), caption=text)]


def phases_figure(table: PosGenTable, families: Sequence[Sequence[Form]]) -> Chart:
    """OOD accuracy in % by number of phases: a panel for each task, a line for each base, with the range of seeds."""
    phases = [form.phases for forms in families for form in forms]
    span = padded(phases, is_log=True)
    places = (2**power * step for power in range(1, 31) for step in (1, 1.25, 1.5))
    ticks = tuple((place, f"{place:g}") for place in places if span[0] <= place <= span[1])
    x = Axis(title="Distinct phases (geometric mean)", scale="log", span=span, ticks=ticks)
    y = Axis(title="OOD accuracy (%)", span=(-3, 103))
    bases = [
        next((form for form in forms if not is_resonance(form.row.row.pe)), forms[0]).row.row for forms in families
    ]
    panels = []
    for task in table.tasks:
        lines = []
        for base, forms in zip(bases, families, strict=True):
            means = [(form, mean) for form in forms if (mean := form.row.runs[task].mean(OOD)) is not None]
            values = [[*form.row.values(task).values()] for form, _ in means]
            several = any(len(found) > 1 for found in values)
            lines.append(
                Line(
                    label=line_label(base, bases),
                    style=line_style(base, bases, with_marker=True),
                    x=tuple(form.phases for form, _ in means),
                    y=tuple(mean.mean for _, mean in means),
                    low=tuple(min(found) for found in values) if several else (),
                    high=tuple(max(found) for found in values) if several else (),
                    places=tuple(form.row.row.label for form, _ in means),
                    notes=tuple(counted(mean.n, "seed") for _, mean in means),
                )
            )
        panels.append(Panel(title=task, x=x, y=y, lines=tuple(lines)))
    return Chart(
        title=f"By number of phases, {table.title}",
        panels=tuple(panels),
        columns=len(panels),
        panel_width=max(WIDTH_INCHES / len(panels), 2.5),
        panel_height=3.0,
        share_y="all",
    )
