"""The part "Beside the published numbers" of PosGen's Markdown: numbers, order, and which settings differ."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from longeval.report.formats.markdown import code, escape_markdown, table_lines
from longeval.report.numbers import MISSING
from longeval.report.posgen_published import Comparison, Inversion, Order
from longeval.report.posgen_tables import OOD, PosGenRow
from longeval.report.posgen_text import interval_text, mean_text, points_text
from longeval.report.rows import factor_text


def published_lines(beside: Comparison) -> list[str]:
    """The part: a table of OOD accuracies, then bullets on order and settings."""
    source = escape_markdown(beside.published.source)
    what, *setting = map(escape_markdown, beside.published.setting)
    lines = ["### Beside the published numbers", "", f"Published: {source}. {what} Difference: here − published.", ""]
    header = ["method", "s"]
    for task in beside.tasks:
        header += [f"{escape_markdown(task)}, here", "published", "difference"]
    rows = []
    for row in beside.rows:
        cells = [code(row.row.label), factor_text(row.row)]
        for task in beside.tasks:
            cells += _cells(beside, row, task)
        rows.append(cells)
    lines += [*table_lines(header, rows), ""]
    for task in beside.tasks:
        order = beside.order(task)
        if order is not None:
            lines += _order_lines(task, order)
    return [*lines, *_setting_lines(beside), *(f"- {sentence}" for sentence in setting), ""]


def _cells(beside: Comparison, row: PosGenRow, task: str) -> list[str]:
    mean = row.runs[task].mean(OOD) if task in row.runs else None
    theirs = beside.number(row, task)
    published = MISSING if theirs is None else f"{theirs.mean:.2f} ± {theirs.variance:.2f}"
    difference = MISSING if mean is None or theirs is None else points_text(mean.mean - theirs.mean)
    return [mean_text(mean), published, difference]


def _order_lines(task: str, order: Order) -> list[str]:
    """Bullets on whether the means are in the published order, on each pair that isn't, and on what seeds can tell."""
    name = escape_markdown(task)
    here = _ranking(order)
    published = " > ".join(code(row.name) for row in order.published)
    if not order.inversions:
        same = (
            "no mean is above one that it is below there" if " = " in here else "the means are in the published order"
        )
        lines = [f"- {name}: {same}, {here}."]
    else:
        lines = [f"- {name}: the means are not in the published order. Here {here}; published {published}."]
    lines += [f"  - {_inversion_text(inversion)}" for inversion in order.inversions]
    return [*lines, *(f"  - {sentence}" for sentence in _certainty(order))]


def _certainty(order: Order) -> Iterator[str]:
    """Of which neighbours in the order here the seeds can tell that one is above the other."""
    told: list[str] = []
    open_: list[str] = []
    untold: list[str] = []
    for (above, below), step in zip(pairwise(order.here), order.steps, strict=True):
        pair = f"{code(above.name)} and {code(below.name)}"
        if step is None or step.n == 1:
            untold.append(pair)
        else:
            text = f"{pair} ({points_text(step.mean)} {interval_text(step)}, {step.n} seeds)"
            (told if step.excludes_zero else open_).append(text)
    if told:
        yield f"Neighbours that the seeds tell apart (the paired interval excludes 0): {', '.join(told)}."
    if open_:
        yield f"Neighbours that the seeds don't tell apart (the paired interval holds 0): {', '.join(open_)}."
    if untold and not (told or open_):
        yield "One seed, which can't tell whether another would give the same order."
    elif untold:
        yield f"Neighbours that fewer than two seeds have both: {', '.join(untold)}; nothing can be told of them."


def _ranking(order: Order) -> str:
    """`a` > `b` = `c`: best first, equal where two decimals are."""
    text = code(order.here[0].name)
    for row, mean, before in zip(order.here[1:], order.here_means[1:], order.here_means, strict=False):
        text += f" {'=' if round(mean, 2) == round(before, 2) else '>'} {code(row.name)}"
    return text


def _inversion_text(inversion: Inversion) -> str:
    """Which two methods are the other way round, by how much, and whether the seeds can tell."""
    text = f"{code(inversion.above.name)} is {inversion.here:.2f} points above {code(inversion.below.name)}"
    difference = inversion.difference
    if difference is None:
        text += "; no seed has both"
    elif difference.n == 1:
        text += "; one seed has both"
    else:
        by_seed = points_text(difference.mean)
        also = "" if by_seed == points_text(inversion.here) else f", over the seeds that both have {by_seed}"
        certain = "lies on one side of 0" if difference.excludes_zero else "holds 0"
        text += f"{also}; the paired interval {interval_text(difference)} of {difference.n} seeds {certain}"
    return f"{text}. Published: {inversion.published:.2f} points below."


def _setting_lines(beside: Comparison) -> list[str]:
    """Bullets: settings that the paper states and that are others here, and those that it leaves open."""
    named = [escape_markdown(f"{name} {ours} (theirs {theirs})") for name, theirs, ours in beside.differences()]
    lines = [f"- Other settings here than the paper states: {', '.join(named)}."] if named else []
    if not named:
        lines.append("- All settings that the paper states are the same here.")
    if beside.table.regime != "trained":
        lines.append("- The regime here is not the one of the paper's text, but the one of its published code.")
    left_open = [escape_markdown(f"{name} {ours}") for name, ours in beside.left_open()]
    if left_open:
        lines.append(f"- What the paper's text leaves open is here: {', '.join(left_open)}.")
    return lines
