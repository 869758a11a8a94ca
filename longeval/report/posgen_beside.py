"""The part "Beside the published numbers" of PosGen's Markdown: numbers, order, and which settings differ."""

from __future__ import annotations

from longeval.report.gfm import escape_markdown, table_lines
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
        cells = [f"`{row.row.label}`", factor_text(row.row)]
        for task in beside.tasks:
            cells += _cells(beside, row, task)
        rows.append(cells)
    lines += [*table_lines(header, rows), ""]
    for task in beside.tasks:
        order = beside.order(task)
        if order is not None:
            lines += _order_lines(task, order, len(beside.table.seeds))
    return [*lines, *_setting_lines(beside), *(f"- {sentence}" for sentence in setting), ""]


def _cells(beside: Comparison, row: PosGenRow, task: str) -> list[str]:
    mean = row.runs[task].mean(OOD) if task in row.runs else None
    theirs = beside.number(row, task)
    published = MISSING if theirs is None else f"{theirs.mean:.2f} ± {theirs.variance:.2f}"
    difference = MISSING if mean is None or theirs is None else points_text(mean.mean - theirs.mean)
    return [mean_text(mean), published, difference]


def _order_lines(task: str, order: Order, num_seeds: int) -> list[str]:
    """A bullet on whether the methods stand in the published order, and one for each pair that doesn't."""
    name = escape_markdown(task)
    here = _ranking(order)
    published = " > ".join(f"`{row.name}`" for row in order.published)
    if not order.inversions:
        same = "no method is above one that it is below there" if " = " in here else "the order is the published one"
        return [f"- {name}: {same}, {here}{' (one seed)' if num_seeds == 1 else ''}."]
    lines = [f"- {name}: the order is not the published one. Here {here}; published {published}."]
    return lines + [f"  - {_inversion_text(inversion)}" for inversion in order.inversions]


def _ranking(order: Order) -> str:
    """`a` > `b` = `c`: best first, equal where two decimals are."""
    text = f"`{order.here[0].name}`"
    for row, mean, before in zip(order.here[1:], order.here_means[1:], order.here_means, strict=False):
        text += f" {'=' if round(mean, 2) == round(before, 2) else '>'} `{row.name}`"
    return text


def _inversion_text(inversion: Inversion) -> str:
    """Which two methods are the other way round, by how much, and whether the seeds can tell."""
    text = f"`{inversion.above.name}` is {inversion.here:.2f} points above `{inversion.below.name}`"
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
    named = [f"{escape_markdown(name)} {ours} (theirs {theirs})" for name, theirs, ours in beside.differences()]
    lines = [f"- Other settings here than the paper states: {', '.join(named)}."] if named else []
    if not named:
        lines.append("- All settings that the paper states are the same here.")
    if beside.table.regime != "trained":
        lines.append("- The regime here is not the one of the paper's text, but the one of its published code.")
    left_open = [f"{escape_markdown(name)} {ours}" for name, ours in beside.left_open()]
    if left_open:
        lines.append(f"- What the paper's text leaves open is here: {', '.join(left_open)}.")
    return lines
