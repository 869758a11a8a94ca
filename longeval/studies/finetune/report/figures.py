"""Figures of fine-tuning: perplexity by length before and after, and the loss by step.

Each augmentation has a panel. A method has the colour that it has in all figures, and its resonance form is drawn on
top of it, thin and with hollow markers. Before training lines are dashed, after it solid. Over seeds lines are means,
and bands reach from the lowest to the highest seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from longeval.report import plots
from longeval.report.document import Picture
from longeval.report.plots import (
    WIDTH_INCHES,
    length_axis,
    line_style,
    native_line,
    new_figure,
    perplexity_axis,
    plain_axes,
    title_and_legend,
)
from longeval.report.tables import GridRow
from longeval.stats.bootstrap import FloatArray
from longeval.store.losses import Losses
from longeval.studies.finetune.report.changes import perplexity, values_of
from longeval.studies.finetune.report.trainings import Measured, Models, TrainingSet, Variant, method_key

_DASHES = (0, (3, 2))
_POINTS = 50
"""A curve of twice as many steps or more is smoothed, so that about so many independent points remain."""


_WORSE = 2.0
"""A base model whose perplexity is more than this times the highest of the others leaves the panel."""


def _panels(number: int, width: float = WIDTH_INCHES) -> tuple[Figure, list[Axes]]:
    """A figure with panels beside one another that share their axes."""
    figure = new_figure(width, 4.0 if number > 1 else 4.4)
    grid = figure.subplots(1, number, sharex=True, sharey=True, squeeze=False)
    return figure, [plain_axes(axes) for axes in grid.flat]


def _styles(rows: Sequence[GridRow]) -> dict[int, dict[str, Any]]:
    """The solid style of each row; resonance forms differ from their base by width and markers."""
    styles = {}
    for row in rows:
        styles[id(row)] = line_style(row, rows, with_marker=True) | {"linestyle": "-"}
    return styles


def length_figure(trained: TrainingSet, evaluation: Measured, native_length: int | None) -> Picture | None:
    """Perplexity by length before and after; None with values at fewer than two lengths."""
    every = [*_points(evaluation.rows, evaluation.lengths)]
    if len({length for length, _ in every}) < 2:
        return None
    augmentations = [name for name in trained.augmentations if _of(evaluation, name)]
    figure, panels = _panels(len(augmentations))
    base = [] if evaluation.untouched is None else [evaluation.untouched]
    rows = _distinct([models.row for models in (*base, *evaluation.before, *evaluation.after)])
    styles = _styles(rows)
    legend: dict[str, dict[str, Any]] = {}
    for axes, augment in zip(panels, augmentations, strict=True):
        after = _of(evaluation, augment)
        untrained = [before for one in after if (before := evaluation.before_of(one)) is not None]
        for models in (*base, *(before for before in untrained if before not in base), *after):
            style = styles[id(_same(rows, models.row))]
            if models is evaluation.untouched:
                style = style | {"linestyle": _DASHES, "label": "base"}
            elif models.variant is None:
                style = style | {"linestyle": _DASHES, "label": f"{style['label']} before"}
            else:
                style = style | {"label": f"{style['label']} trained"}
            _draw_lengths(axes, models, evaluation.lengths, style)
            legend.setdefault(str(style["label"]), style)
        axes.set_xlabel("Context length (tokens)")
        if len(augmentations) > 1:
            axes.set_title(augment, fontsize=9, pad=14)
    length_axis(panels[0], evaluation.lengths)
    _scale(panels[0], evaluation)
    for axes in panels:
        native_line(axes, native_length)
    title_and_legend(figure, f"{trained.title}: {evaluation.title}", legend.values())
    return plots.render(figure)


def leaves_panel(evaluation: Measured) -> bool:
    """Whether the untouched model is so much worse at some length that the axis leaves it out there.

    Beyond its native length it often is a hundred times worse, on an axis on which the methods would be one line.
    """
    if evaluation.untouched is None:
        return False
    own = max((value for _, value in _points([evaluation.untouched], evaluation.lengths)), default=0.0)
    others = [value for _, value in _points((*evaluation.before, *evaluation.after), evaluation.lengths)]
    return bool(others) and own > _WORSE * max(others)


def _scale(axes: Axes, evaluation: Measured) -> None:
    """The axis of perplexities, over what it shows."""
    rows = evaluation.rows
    if leaves_panel(evaluation):
        rows = (*evaluation.before, *evaluation.after)
    values = [value for _, value in _points(rows, evaluation.lengths)]
    if leaves_panel(evaluation):
        base = [] if evaluation.untouched is None else [evaluation.untouched]
        lowest = min(value for _, value in _points((*rows, *base), evaluation.lengths))
        margin = 0.06 * (max(values) - lowest)
        axes.set_ylim(max(lowest - margin, 0.9 * lowest), max(values) + margin)  # 0 has no place on a logarithmic axis
    perplexity_axis(axes, values)


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


def _draw_lengths(axes: Axes, models: Models, lengths: Sequence[int], style: dict[str, Any]) -> None:
    """One line, broken where a cell has no value, with a band over seeds."""
    measured = [length for length in lengths if length in models.cells]
    values = [values_of(models, length) for length in measured]
    axes.plot(measured, [perplexity(found) if found else math.nan for found in values], **style)
    if any(len(found) > 1 for found in values):
        low, high = (
            [end((record.value for record in found.values() if record.value), default=math.nan) for found in values]
            for end in (min, max)
        )
        axes.fill_between(measured, low, high, color=style["color"], alpha=0.15, linewidth=0)


def loss_figure(trained: TrainingSet, losses: Callable[[str], Losses | None]) -> Picture | None:
    """Cross-entropy by step; None without losses of two steps."""
    curves = [(variant, found) for variant in trained.variants if (found := _curves(variant, losses))]
    longest = max((len(one) for _, found in curves for one in found), default=0)
    if longest < 2:
        return None
    augmentations = [name for name in trained.augmentations if any(variant.augment == name for variant, _ in curves)]
    figure, panels = _panels(len(augmentations))
    rows = _distinct([variant.row for variant, _ in curves])
    legend: dict[str, dict[str, Any]] = {}
    width = smoothing(longest)
    for axes, augment in zip(panels, augmentations, strict=True):
        for variant, found in curves:
            if variant.augment != augment:
                continue
            row = _same(rows, variant.row)
            style = line_style(row, rows, with_marker=False)
            legend.setdefault(str(style["label"]), style)
            _draw_losses(axes, found, width, style)
        axes.set_xlabel("Optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8 // len(augmentations) + 2))
        if len(augmentations) > 1:
            axes.set_title(augment, fontsize=9)
    panels[0].set_ylabel("Training loss (nats per token)")
    title_and_legend(figure, trained.title, legend.values())
    return plots.render(figure)


def smoothing(steps: int) -> int:
    """Number of neighbouring steps that are averaged to one point of the curve; 1 where there are few."""
    return max(1, steps // _POINTS)


def _curves(variant: Variant, losses: Callable[[str], Losses | None]) -> list[tuple[float, ...]]:
    """The cross-entropies by step of a variant's seeds."""
    found = [losses(record.cell) for record in variant.trainings.values() if record.status == "ok"]
    return [one.cross_entropy for one in found if one is not None]


def _draw_losses(axes: Axes, curves: Sequence[tuple[float, ...]], width: int, style: dict[str, Any]) -> None:
    """The mean of curves of equal length over seeds with a band; each point is the mean of `width` steps."""
    values_SK = np.array([_smoothed(curve, width) for curve in curves])
    x_K = (np.arange(values_SK.shape[1]) + (width + 1) / 2).tolist()
    axes.plot(x_K, values_SK.mean(axis=0), **style)
    if len(curves) > 1:
        low_K, high_K = values_SK.min(axis=0), values_SK.max(axis=0)
        axes.fill_between(x_K, low_K, high_K, color=style["color"], alpha=0.15, linewidth=0)


def _smoothed(curve: Sequence[float], width: int) -> FloatArray:
    """Means of each `width` neighbouring values."""
    smoothed: FloatArray = np.convolve(np.array(curve), np.full(width, 1 / width), mode="valid")
    return smoothed
