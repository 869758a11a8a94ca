"""Figures of fine-tuning: perplexity by length before and after, and the loss by step.

Each augmentation has a panel. A method has the colour that it has in all figures, and its resonance form is drawn on
top of it, thin and with hollow markers. Before training lines are dashed, after it solid. Over seeds lines are means,
and bands reach from the lowest to the highest seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from longeval.report.charts import WIDTH_INCHES, Axis, Chart, Line, Panel
from longeval.report.lines import (
    length_axis,
    line_label,
    line_style,
    native_mark,
    perplexity_axis,
    record_line,
    seed_line,
)
from longeval.report.tables import GridRow
from longeval.stats.bootstrap import FloatArray
from longeval.store.losses import Losses
from longeval.store.records import Record
from longeval.studies.finetune.report.changes import perplexity, values_of
from longeval.studies.finetune.report.trainings import Measured, Models, TrainingSet, Variant, method_key

_POINTS = 50
"""A curve of twice as many steps or more is smoothed, so that about so many independent points remain."""

_WORSE = 2.0
"""A base model whose perplexity is more than this times the highest of the others leaves the panel."""


def length_figure(trained: TrainingSet, evaluation: Measured, native_length: int | None) -> Chart | None:
    """Perplexity by length before and after; None with values at fewer than two lengths, or without any after."""
    every = _points(evaluation.rows, evaluation.lengths)
    if len({length for length, _ in every}) < 2 or not evaluation.after:
        return None
    base = [] if evaluation.untouched is None else [evaluation.untouched]
    rows = _distinct([models.row for models in (*base, *evaluation.before, *evaluation.after)])
    x, y = length_axis(evaluation.lengths), _perplexities(evaluation)
    panels = []
    for augment in trained.augmentations:
        after = _of(evaluation, augment)
        untrained = [before for one in after if (before := evaluation.before_of(one)) is not None]
        shown = [*base, *(before for before in untrained if before not in base), *after]
        lines = tuple(_length_line(models, evaluation, rows) for models in shown)
        if after:
            panels.append(Panel(title=augment, x=x, y=y, lines=lines, marks=native_mark(x, native_length)))
    return _beside_another(f"{trained.title}: {evaluation.title}", panels)


def _beside_another(title: str, panels: Sequence[Panel]) -> Chart:
    """Panels in one row that share their axes; one alone needs no title of its own."""
    if len(panels) == 1:
        return Chart(title=title, panels=(replace(panels[0], title=""),))
    return Chart(
        title=title,
        panels=tuple(panels),
        columns=len(panels),
        panel_width=WIDTH_INCHES / len(panels),
        panel_height=3.0,
        share_x=True,
        share_y="all",
    )


def leaves_panel(evaluation: Measured) -> bool:
    """Whether the untouched model is so much worse at some length that the axis leaves it out there.

    Beyond its native length it often is a hundred times worse, on an axis on which the methods would be one line.
    """
    if evaluation.untouched is None:
        return False
    own = max((value for _, value in _points([evaluation.untouched], evaluation.lengths)), default=0.0)
    others = [value for _, value in _points((*evaluation.before, *evaluation.after), evaluation.lengths)]
    return bool(others) and own > _WORSE * max(others)


def _perplexities(evaluation: Measured) -> Axis:
    """The axis of perplexities, over what it shows."""
    if not leaves_panel(evaluation):
        return perplexity_axis([value for _, value in _points(evaluation.rows, evaluation.lengths)])
    values = [value for _, value in _points((*evaluation.before, *evaluation.after), evaluation.lengths)]
    lowest = min(value for _, value in _points(evaluation.rows, evaluation.lengths))
    margin = 0.06 * (max(values) - lowest)
    # 0 has no place on a logarithmic axis.
    return perplexity_axis(values, span=(max(lowest - margin, 0.9 * lowest), max(values) + margin))


def _of(evaluation: Measured, augment: str) -> list[Models]:
    return [models for models in evaluation.after if models.variant is not None and models.variant.augment == augment]


def _distinct(rows: Sequence[GridRow]) -> list[GridRow]:
    """One row for each method, parameters and factor."""
    found: dict[tuple[object, ...], GridRow] = {}
    for row in rows:
        found.setdefault(method_key(row), row)
    return [*found.values()]


def _same(rows: Sequence[GridRow], wanted: GridRow) -> GridRow:
    return next(row for row in rows if method_key(row) == method_key(wanted))


def _points(rows: Sequence[Models], lengths: Sequence[int]) -> list[tuple[int, float]]:
    return [
        (length, perplexity(found)) for models in rows for length in lengths if (found := values_of(models, length))
    ]


def _length_line(models: Models, evaluation: Measured, rows: Sequence[GridRow]) -> Line:
    """One line, broken where a cell has no value, with a band over seeds."""
    row = _same(rows, models.row)
    is_trained = models.variant is not None
    style = replace(line_style(row, rows, with_marker=True), dash="solid" if is_trained else "dashed")
    label = f"{line_label(row, rows)} {'trained' if is_trained else 'before'}"
    if models is evaluation.untouched:
        label = "base"
    measured = [length for length in evaluation.lengths if length in models.cells]
    values = [values_of(models, length) for length in measured]
    if all(len(found) <= 1 for found in values):
        every = [{**found, **models.cells[length]} for length, found in zip(measured, values, strict=True)]
        return record_line(label, style, [next(iter(cells.values())) for cells in every])
    ends_K3 = [_ends(found) for found in values]
    return seed_line(label, style, measured, np.array(ends_K3).T, [len(found) for found in values])


def _ends(found: Mapping[int, Record]) -> tuple[float, float, float]:
    """Mean, lowest and highest perplexity over seeds."""
    values = [record.value for record in found.values() if record.value]
    return (perplexity(found), min(values), max(values)) if values else (math.nan, math.nan, math.nan)


def loss_figure(trained: TrainingSet, losses: Callable[[str], Losses | None]) -> Chart | None:
    """Cross-entropy by step; None without losses of two steps."""
    curves = [(variant, found) for variant in trained.variants if (found := _curves(variant, losses))]
    longest = max((len(one) for _, found in curves for one in found), default=0)
    if longest < 2:
        return None
    rows = _distinct([variant.row for variant, _ in curves])
    x, y = Axis(title="Optimiser step", is_whole=True), Axis(title="Training loss (nats per token)")
    panels = []
    for augment in trained.augmentations:
        lines = [
            _loss_line(_same(rows, variant.row), rows, found, smoothing(longest))
            for variant, found in curves
            if variant.augment == augment
        ]
        if lines:
            panels.append(Panel(title=augment, x=x, y=y, lines=tuple(lines)))
    return _beside_another(trained.title, panels)


def smoothing(steps: int) -> int:
    """Number of neighbouring steps that are averaged to one point of the curve; 1 where there are few."""
    return max(1, steps // _POINTS)


def _curves(variant: Variant, losses: Callable[[str], Losses | None]) -> list[tuple[float, ...]]:
    """The cross-entropies by step of a variant's seeds."""
    found = [losses(record.cell) for record in variant.trainings.values() if record.status == "ok"]
    return [one.cross_entropy for one in found if one is not None]


def _loss_line(row: GridRow, rows: Sequence[GridRow], curves: Sequence[tuple[float, ...]], width: int) -> Line:
    """The mean of curves of equal length over seeds with a band; each point is the mean of `width` steps."""
    values_SK = np.array([_smoothed(curve, width) for curve in curves])
    ends_3K = values_SK.mean(axis=0), values_SK.min(axis=0), values_SK.max(axis=0)
    x = [step + (width + 1) / 2 for step in range(values_SK.shape[1])]
    style = line_style(row, rows, with_marker=False)
    return seed_line(line_label(row, rows), style, x, ends_3K, [len(curves)] * len(x))


def _smoothed(curve: Sequence[float], width: int) -> FloatArray:
    """Means of each `width` neighbouring values."""
    smoothed: FloatArray = np.convolve(np.array(curve), np.full(width, 1 / width), mode="valid")
    return smoothed
