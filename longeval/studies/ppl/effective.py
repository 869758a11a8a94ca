"""Effective length by perplexity: how far each method holds the perplexity that it has at the native length.

Beside it stands what stretching gains at the longest length and costs at the native one, against `none`. A method's
effective length compares it with itself, so one that is bad everywhere can have a long one: the cost shows that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from longeval.report.changes import change_cell, paired_as, resampled_as
from longeval.report.collect import Collection
from longeval.report.document import Data, Heading, Paragraph, Prose, Section, Table, TableCell, code, prose, symbol
from longeval.report.effective import effective_cell, effective_numbers, interval_sentence
from longeval.report.numbers import counted
from longeval.report.tables import DASH, Grid, GridRow, build_grids, method_row, row_name, slugs_of
from longeval.stats.bootstrap import PairedDifference
from longeval.stats.effective import (
    Effective,
    effective_length,
    from_values,
    joint_nll,
    not_above_first,
    num_documents,
)
from longeval.store.nll import NLL
from longeval.store.records import Record
from longeval.values import format_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """A method against `none` at one length."""

    ratio: float
    """Perplexity of the method over that of `none`, minus 1."""
    difference: PairedDifference | None
    """With its interval; None where NLLs are not stored, or are not of the same tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveRow:
    """One method of one model."""

    grid: Grid
    """The perplexities of its model."""
    row: GridRow
    reference: int | None
    """The longest measured length up to the native one, in tokens; None for none."""
    found: Effective | None
    """None where nothing can be said."""
    shared: int | None
    """Number of documents that were compared, those that every length has; None without token values."""
    documents: int | None
    """Number of documents that any of the lengths has."""
    why: str
    """Why nothing can be said, or where a failed cell ended the lengths; may be empty."""
    gain: Against | None
    """At the longest length of the table."""
    cost: Against | None
    """At the reference length of the table."""


def opening(collection: Collection) -> list[Section]:
    """What opens the report: a section for each data set and protocol, with all models that can share a table."""
    groups: dict[tuple[object, ...], list[Grid]] = {}
    for grid in build_grids(collection.made_from(NLL)):
        reference = _reference(grid.lengths, grid.native_length)
        same = grid.data, grid.protocol, grid.differs, grid.native_length, reference, grid.lengths[-1]
        groups.setdefault(same, []).append(grid)
    titles = [_title(grids) for grids in groups.values()]
    slugs = slugs_of(titles)
    return [
        _section(grids, title, slug, collection)
        for grids, title, slug in zip(groups.values(), titles, slugs, strict=True)
    ]


def _title(grids: Sequence[Grid]) -> str:
    """Of several models, their number in place of a name."""
    first = grids[0]
    return first.title if len(grids) == 1 else replace(first, model=counted(len(grids), "model")).title


def _section(grids: Sequence[Grid], subject: str, slug: str, collection: Collection) -> Section:
    rows = [row for grid in grids for row in effective_rows(grid, collection)]
    table = _table(grids[0], subject, slug, rows)
    title = f"Perplexity: {subject}"
    data = (_data(grids[0], rows),)
    if all(row.found is None for row in rows):
        why = f"Not known of {subject}: {'; '.join(_notes(grids[0], rows))}."
        return Section(title=title, blocks=(Paragraph(text=why),), data=data)
    said = f"{interval_sentence(row.found for row in rows if row.found is not None)}{_concluded(rows)}"
    return Section(title=title, blocks=(Heading(text=title), table, Paragraph(text=said)), paper=(table,), data=data)


def effective_rows(grid: Grid, collection: Collection) -> list[EffectiveRow]:
    """The effective length of each method of a table, with gain and cost."""
    base = next((row for row in grid.rows if row.pe == "none"), None)
    reference = _reference(grid.lengths, grid.native_length)
    found = []
    for row in grid.rows:
        other = None if row is base else base
        gain = _against(other, row, grid.lengths[-1], collection) if grid.lengths[-1] != reference else None
        cost = None if reference is None else _against(other, row, reference, collection)
        found.append(_effective_row(grid, row, collection, gain=gain, cost=cost))
    return found


def _reference(lengths: Sequence[int], native: int | None) -> int | None:
    """The longest of some lengths up to the native one."""
    return max((length for length in lengths if native is not None and length <= native), default=None)


def _effective_row(
    grid: Grid, row: GridRow, collection: Collection, *, gain: Against | None, cost: Against | None
) -> EffectiveRow:
    native = grid.native_length
    done = [length for length, record in sorted(row.cells.items()) if record.status == "ok"]
    reference = _reference(done, native)
    judged: list[int] = []
    found, documents, why = None, None, ""
    if native is None:
        why = "the native length is not recorded"
    elif reference is None:
        why = f"no length up to the native one ({format_length(native)}) has a perplexity to compare with"
    else:
        for length in (length for length in sorted(row.cells) if length >= reference):
            if row.cells[length].status != "ok":
                why = f"judged up to {format_length(judged[-1])} only: {format_length(length)} has no value"
                break
            judged.append(length)
    if reference is not None and len(judged) == 1:
        why = f"no length beyond {format_length(reference)} has a value"
    elif judged:
        found, documents = _judged([row.cells[length] for length in judged], collection)
    return EffectiveRow(
        grid=grid,
        row=row,
        reference=reference,
        found=found,
        shared=None if documents is None else documents[0],
        documents=None if documents is None else documents[1],
        why=why,
        gain=gain,
        cost=cost,
    )


def _judged(records: Sequence[Record], collection: Collection) -> tuple[Effective, tuple[int, int] | None]:
    """The effective length over some cells of a method, the first of them the reference; with numbers of documents."""
    lengths = [record.length for record in records]
    read = [collection.nll(record.cell) for record in records]
    nlls = [nll for nll in read if nll is not None]
    joint = joint_nll(nlls, records[0].protocol) if len(nlls) == len(records) else None
    if joint is None:
        values = [float("inf") if record.value is None else record.value for record in records]
        return from_values(lengths, not_above_first, values), None
    resamples, seed, level = resampled_as(records[0])
    found = effective_length(lengths, not_above_first, [joint], resamples=resamples, seed=seed, level=level)
    return found, num_documents(nlls)


def _against(base: GridRow | None, row: GridRow, length: int, collection: Collection) -> Against | None:
    a, b = None if base is None else base.cells.get(length), row.cells.get(length)
    if a is None or b is None or not a.value or b.value is None:
        return None
    difference = paired_as(a, collection.nll(a.cell), collection.nll(b.cell))
    return Against(ratio=b.value / a.value - 1 if difference is None else difference.ratio, difference=difference)


def _table(grid: Grid, subject: str, slug: str, rows: Sequence[EffectiveRow]) -> Table:
    """The table of one or several models; what is said of columns is the same of all, and said of `grid`."""
    several = _several_models(rows)
    reference = _reference(grid.lengths, grid.native_length)
    has_gain, has_cost = (any(getattr(row, name) is not None for row in rows) for name in ("gain", "cost"))
    columns: list[Prose] = [*(["model"] if several else []), "method", symbol("s"), "effective length"]
    columns += [prose("against `none` at {}", format_length(grid.lengths[-1]))] if has_gain else []
    columns += [prose("against `none` at {}", format_length(reference or 0))] if has_cost else []
    shown = []
    for row in rows:
        cells = [effective_cell(row.found)]
        cells += [_against_cell(row.gain)] if has_gain else []
        cells += [_against_cell(row.cost)] if has_cost else []
        names = (code(row.grid.model), code(row.row.label)) if several else ()
        shown.append(method_row(row.row, cells, names))
    return Table(
        columns=tuple(columns),
        rows=tuple(shown),
        left=2 if several else 1,
        title=f"Effective length: {subject}",
        caption=_caption(grid, reference, changes=has_gain or has_cost, several=several),
        notes=tuple(_notes(grid, rows)),
        label=f"effective-{slug}",
    )


def _several_models(rows: Sequence[EffectiveRow]) -> bool:
    return any(row.grid is not rows[0].grid for row in rows)


def _against_cell(against: Against | None) -> TableCell:
    return DASH if against is None else change_cell(against.ratio, against.difference)


def _caption(grid: Grid, reference: int | None, *, changes: bool, several: bool) -> Prose:
    native = grid.native_length
    text = "Effective length: the longest length tried at which the perplexity of a method, as at every length tried "
    if native is None or reference is None:
        text += "before it, is not above its own at the native length"
    elif native == reference:
        text += f"between, is not above its own at the native length, {format_length(native)}"
    else:
        text += (
            f"between, is not above its own at {format_length(reference)}, the longest length measured up to the "
            f"native one, {format_length(native)}"
        )
    text += (
        ". ≥: the longest length tried passes, so the effective length may be longer. It compares a method with itself"
    )
    if not changes:
        return prose(f"{text}.")
    text += (
        ", however bad that is; against `none`: relative change of perplexity on the same tokens at the longest and at "
        "the reference length (negative: better than `none`; bold: the interval excludes 0; –: the row is the `none` "
        "of its model, or one of the two values is missing)"
    )
    if several:
        text += (
            ". No model is compared with another here, and a trained model, whose configuration holds its method, is "
            "the `none` of its own"
        )
    return prose(f"{text}.")


def _notes(grid: Grid, rows: Sequence[EffectiveRow]) -> Iterator[str]:
    """Rows that have another reference than the table, no answer, or other documents at some lengths."""
    names = {id(row): row_name(row.row, row.grid.rows) for row in rows}
    if _several_models(rows):
        names = {id(row): f"{row.grid.model} {names[id(row)]}" for row in rows}
    reference = _reference(grid.lengths, grid.native_length)
    for own in dict.fromkeys(row.reference for row in rows if row.reference not in (None, reference)):
        same = ", ".join(names[id(row)] for row in rows if row.reference == own)
        yield f"compared with its perplexity at {format_length(own or 0)}, as it has none at a longer one: {same}"
    for why in dict.fromkeys(row.why for row in rows if row.why):
        yield f"{why}: {', '.join(names[id(row)] for row in rows if row.why == why)}"
    fewer = [row for row in rows if row.shared is not None and row.shared != row.documents]
    for few, every in dict.fromkeys((row.shared, row.documents) for row in fewer):
        same = ", ".join(names[id(row)] for row in fewer if (row.shared, row.documents) == (few, every))
        yield f"lengths have different documents; compared on the {few} of {every} that all have: {same}"


def _concluded(rows: Sequence[EffectiveRow]) -> str:
    """What can be concluded from the table, and what not."""
    found = [row for row in rows if row.found is not None]
    numbers = [row.shared for row in found if row.shared is not None]
    kinds = {row.found.ends.kind for row in found if row.found is not None and row.found.ends is not None}
    documents = counted(min(numbers), "document") if numbers else "documents whose token values are not stored"
    if kinds == {"document"}:
        text = f"They rest on {documents} and hold for others of this kind"
    elif kinds:
        text = f"All rests on {documents}: intervals hold for more text like theirs and say nothing of other documents"
    else:
        text = f"All rests on {documents}, and nothing says how much of it is chance"
    if rows[0].grid.protocol == "prefix":
        text += ". Longer windows score text that shorter ones do not reach, so easier text can make a length pass"
    return (
        f"{text}. Perplexity is a mean over all tokens: a length that passes does not show that the model uses it all."
    )


def _data(grid: Grid, rows: Sequence[EffectiveRow]) -> Data:
    """One row per method."""
    reference = _reference(grid.lengths, grid.native_length)
    lines = []
    for row in rows:
        line = {
            "model": row.grid.model,
            "subject": grid.data,
            "protocol": grid.protocol,
            "differs": grid.differs,
            "metric": grid.metric,
            "rule": "not above the reference",
            "pe": row.row.label,
            "factor": row.row.factor,
            "native_length": grid.native_length,
            "reference": row.reference,
            **effective_numbers(row.found),
            "documents": row.shared,
            "why": row.why,
        }
        for name, against, length in (("gain", row.gain, grid.lengths[-1]), ("cost", row.cost, reference)):
            found = None if against is None else against.difference
            line[f"{name}_length"] = length
            line[name] = None if against is None else against.ratio
            line[f"{name}_low"], line[f"{name}_high"] = getattr(found, "low", None), getattr(found, "high", None)
        lines.append(line)
    return Data(name="effective", rows=tuple(lines))
