"""What a report says of perplexities: tables by context length, paired differences, curves, and what was scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from longeval.metrics import METRICS, metrics_of
from longeval.metrics.perplexity import PERPLEXITY
from longeval.report.build import StudyReport
from longeval.report.collect import MAX_DRAWN, Collection
from longeval.report.document import Block, Bullets, Figure, Heading, Prose, Row, Section, Table, TableCell, View, prose
from longeval.report.facts import codes, method_facts, model_fact, server_notes
from longeval.report.numbers import count_range, counted, format_perplexity
from longeval.report.pairs import RowSet
from longeval.report.published import OwnRow, PublishedSet, comparison_blocks, published_sets
from longeval.report.tables import (
    DASH,
    Grid,
    build_grids,
    length_columns,
    method_rows_of,
    outcome_lines,
    slugs_of,
    value_cell,
)
from longeval.store.nll import NLL
from longeval.store.records import Record
from longeval.studies.ppl import key_tables
from longeval.studies.ppl.curves import find_positions, length_curve, position_blocks, position_data
from longeval.studies.ppl.effective import opening
from longeval.studies.ppl.pairs import pair_data, pair_rows, pair_table
from longeval.studies.ppl.tokens import MOST_BYTES, token_data
from longeval.values import format_length, parse_length

_MAX_DOCUMENTS = 20
"""More names than this say no more."""

_PROTOCOLS = {
    "prefix": "the first n tokens of each document in one window; every token after the first is scored once",
    "sliding": "windows of n tokens every `stride` tokens over the whole document; in each window only the tokens not "
    "yet scored count (Press et al. 2022)",
    "sliding_window_mean": "windows of n tokens every `stride` tokens over the whole document; in each window only the "
    "tokens not yet scored count; the plain mean of all windows' means, whatever their number of tokens",
    "stream": "documents joined into one stream without separators, windows of n tokens every `stride` tokens, every "
    "token of every window scored",
}


def sections(collection: Collection) -> list[Section]:
    """One section for each table, in the order of their first cells."""
    records = collection.made_from(NLL)
    grids = build_grids(records)
    further = [metric for metric in metrics_of(NLL) if metric is not PERPLEXITY]
    others = {metric.name: build_grids(records, metric.name) for metric in further}
    long = key_tables.long_ppl_grids(collection)
    found = []
    most = MOST_BYTES // max(1, min(len(grids), MAX_DRAWN))
    for number, (grid, slug) in enumerate(zip(grids, slugs_of([grid.title for grid in grids]), strict=True)):
        same_cells = [other for grids_of in others.values() if (other := _same_cells(grid, grids_of)) is not None]
        is_drawn = collection.is_drawn(number)
        keys = key_tables.long_ppl_blocks(grid, long, slug, collection, is_drawn=is_drawn)
        section = _section(grid, slug, same_cells, keys, collection, is_drawn=is_drawn)
        if number < MAX_DRAWN:
            view = View(kind="tokens", title="Token by token", load=partial(token_data, grid, long, collection, most))
            section = replace(section, views=(view,))
        found.append(section)
    return found


def summary(records: Sequence[Record]) -> list[Table]:
    """Tables for the terminal."""
    own = [replace(perplexity_table(grid), title=f"Perplexity: {grid.title}") for grid in build_grids(records)]
    return [*own, *key_tables.summary(records)]


def _section(
    grid: Grid, slug: str, further: Sequence[Grid], keys: Sequence[Block], collection: Collection, *, is_drawn: bool
) -> Section:
    pairs = [] if collection.pairs else pair_rows(grid, collection.nll)
    positions = find_positions(grid, collection)
    table = perplexity_table(grid, slug)
    blocks: list[Block] = [*server_notes(grid.records), table]
    if is_drawn and (chart := length_curve(grid)) is not None:
        blocks.append(Figure(name=f"perplexity-{slug}", description="Perplexity by context length", chart=chart))
    paper = [table]
    if pairs:
        paper.append(pair_table(grid, pairs, slug))
        blocks += [Heading(text="Resonance against its base"), paper[-1]]
    blocks += keys
    paper += [block for block in keys if isinstance(block, Table)]
    blocks += [Heading(text="Perplexity by position"), *position_blocks(grid, positions, slug, is_drawn=is_drawn)]
    for other in further:
        blocks += [Heading(text=other.metric.replace("_", " ").capitalize()), _further_table(other)]
    documents = () if positions is None else positions.documents
    blocks += [Heading(text="What was scored"), *scored_blocks(grid, documents)]
    return Section(
        title=grid.title,
        blocks=tuple(blocks),
        paper=tuple(paper),
        data=(pair_data(grid, pairs), position_data(grid, positions)),
        published=tuple(published_blocks(grid)),
        differs=(grid.differs,),
        is_drawn=is_drawn,
    )


def row_sets(collection: Collection) -> list[RowSet]:
    """The tables of perplexities, for `--pairs`."""
    return [
        RowSet(
            subject=f"Perplexity on {grid.data}, {grid.protocol}",
            model=grid.model,
            differs=grid.differs,
            rows=grid.rows,
            found=collection.nll,
        )
        for grid in build_grids(collection.made_from(NLL))
    ]


def _same_cells(grid: Grid, others: Iterable[Grid]) -> Grid | None:
    """The table of another metric that holds cells of `grid`, if any has a value."""
    cells = {record.cell for record in grid.records}
    for other in others:
        if any(record.cell in cells and record.value is not None for record in other.records):
            return other
    return None


def perplexity_table(grid: Grid, slug: str = "") -> Table:
    """Perplexities with their intervals, the best of each length in bold; `slug` names it in references."""
    return Table(
        columns=length_columns(["method"], grid.lengths),
        rows=method_rows_of(grid.rows, grid.lengths, lambda record: _cell(grid, record)),
        title=grid.title,
        caption=_caption(grid),
        notes=tuple(outcome_lines(grid.rows, grid.lengths)),
        label=f"ppl-{slug}",
    )


def _cell(grid: Grid, record: Record | None) -> TableCell:
    return value_cell(record, is_best=record is not None and grid.is_best(record))


def _caption(grid: Grid) -> Prose:
    text = "Perplexity (lower is better)"
    if any(record.ci_low is not None for record in grid.records):
        text += " with its 95% bootstrap interval"
    text += "; the best of each length in bold"
    if grid.native_length is not None:
        own = grid.records[0].params.get("own_native_length")
        set_by_hand = bool(own) and own != grid.native_length
        whose = "Taken as native length (`--native`):" if set_by_hand else "The native length of the model is"
        text += f". {whose} {format_length(grid.native_length)}"
    return prose(f"{text}.")


def _further_table(grid: Grid) -> Table:
    """The same cells by another metric of token values."""
    metric = METRICS[grid.metric]
    better = {True: " (higher is better)", False: " (lower is better)", None: ""}[metric.higher_is_better]
    return Table(
        columns=length_columns(["method"], grid.lengths),
        rows=method_rows_of(grid.rows, grid.lengths, lambda record: _cell(grid, record)),
        caption=f"{metric.definition.rstrip('.')}{better}; – where there is no value.",
    )


def scored_blocks(grid: Grid, documents: Sequence[str]) -> list[Block]:
    """A list and a table: protocol, model settings, factors, and the counts at each length.

    Args:
        grid: The table.
        documents: Names of the documents of the longest windows; empty where not known.
    """
    settings = grid.records[0].params
    known = _PROTOCOLS.get(grid.protocol, "not described here")
    facts: list[Prose] = [prose(f"Protocol `{{}}`: {known}.", grid.protocol)]
    lengths = [(name, settings.get(name)) for name in ("stride", "min_tokens")]
    shown = [f"`{name}` {format_length(value)}" for name, value in lengths if value is not None]
    if shown:
        facts.append(prose(f"Selection: {', '.join(shown)}."))
    if grid.protocol == "prefix" and len(grid.lengths) > 1:
        facts.append(
            "All lengths of a method whose table does not depend on length come from one forward pass a document; in "
            "bfloat16 and float16 the last digits can differ from those of a pass at that length alone."
        )
    shared = max((record.params.get("batch_size", 1) for record in grid.records), default=1)
    if shared > 1:
        facts.append(
            f"Up to {shared} windows of equal length shared a forward pass, without padding; values differ from those "
            "of single windows by rounding only."
        )
    if documents:
        more = f" and {len(documents) - _MAX_DOCUMENTS} more" if len(documents) > _MAX_DOCUMENTS else ""
        facts.append(prose(f"Documents: {{}}{more}.", codes(documents[:_MAX_DOCUMENTS])))
    if settings.get("without_text"):
        facts.append(f"Records without text (null or missing), counted as skipped: {settings['without_text']:,}.")
    if settings.get("data_digest"):
        facts.append(prose("Digest of the texts: `{}`.", settings["data_digest"]))
    if settings.get("bos") is not None:
        facts.append(f"BOS: {_prefix_text(settings)}.")
    if settings.get("parse_special"):
        facts.append(prose("Special tokens that texts spell were read as control tokens (`--parse-special`)."))
    facts.append(model_fact(grid.model, grid.native_length, grid.records[0]))
    facts += [*method_facts(grid.rows), _interval_fact(grid)]
    return [Bullets(items=tuple(facts)), _count_table(grid)]


def _prefix_text(settings: dict[str, Any]) -> str:
    """What stands at the start of every window."""
    prefix = settings.get("prefix") or []
    if not settings["bos"]:
        return "none"
    if len(prefix) < 2:
        return "one at the start of every window, counted in its length"
    ids = ", ".join(map(str, prefix))
    return (
        f"{len(prefix)} tokens of the tokenizer's own (ids {ids}) at the start of every window, counted in its length"
    )


def _interval_fact(grid: Grid) -> Prose:
    how: dict[str, Any] = next((ci for record in grid.records if (ci := record.params.get("ci"))), {})
    if not how:
        return "Intervals: none (too few documents or tokens to resample)."
    speaks = (
        "they speak of other documents of this kind"
        if how.get("kind") == "document"
        else "blocks of consecutive tokens of these documents, so they speak of more text from these documents, "
        "not of other documents"
    )
    drawn = f"{how.get('resamples', '?')} resamples of {how.get('kind', 'unit')}s, level {how.get('level', 0.95):.0%}"
    return f"Intervals: percentile bootstrap, {drawn}, seed {how.get('seed', '?')}; {speaks}."


_COUNTS: dict[str, Callable[[Record], int | None]] = {
    "windows": lambda record: record.n,
    "scored tokens": lambda record: record.tokens,
    "documents": lambda record: record.documents,
    "truncated": lambda record: record.truncated,
    "skipped (too short)": lambda record: record.skipped,
    "bootstrap units": lambda record: (record.params.get("ci") or {}).get("units"),
}


def _count_table(grid: Grid) -> Table:
    """Counts at each length: one number where all methods agree, as they should; else the lowest and the highest."""
    rows = []
    for length in grid.lengths:
        records = [r for row in grid.rows if (r := row.cells.get(length)) is not None and r.status == "ok"]
        counts = [count_range([count(record) for record in records]) for count in _COUNTS.values()]
        rows.append(Row(cells=tuple(TableCell(text=text) for text in (format_length(length), *counts))))
    return Table(columns=("length", *_COUNTS), rows=tuple(rows))


# Published perplexities beside ours, and every difference of setting in words.


def published_blocks(grid: Grid) -> Iterator[Block]:
    """A table of each paper on the same data with ours below, and a list of what differs."""
    for published in published_sets():
        if published.kind != "perplexity" or published.data != grid.data:
            continue
        lengths = sorted({parse_length(column) for column in published.columns} | set(grid.lengths))
        rows = [OwnRow(row, None, [_own_cell(row.cells.get(length)) for length in lengths]) for row in grid.rows]
        yield from comparison_blocks(
            published,
            grid.model,
            rows,
            title=grid.title,
            columns=[*map(format_length, lengths)],
            number=format_perplexity,
            differences=_differences(published, grid),
        )


def _own_cell(record: Record | None) -> TableCell:
    if record is None or record.value is None:
        return DASH
    cell = value_cell(record)
    note = "" if record.documents is None else f"(n {record.documents:,})"
    return TableCell(text=cell.text, interval=cell.interval, note=note)


def _differences(published: PublishedSet, grid: Grid) -> Iterator[str]:
    if grid.protocol != published.protocol:
        yield f"protocol: theirs is {published.protocol}, ours {grid.protocol}: the numbers are not comparable"
    stride = grid.records[0].params.get("stride")
    if grid.protocol == published.protocol == "sliding_window_mean" and stride != 256:
        yield f"stride: theirs is 256, ours {stride}"
    documents = sorted({record.documents for record in grid.records if record.documents is not None})
    if documents:
        shown = counted(documents[-1], "document")
        shown = shown if len(documents) == 1 else f"{documents[0]} to {shown}"
        least = format_length(grid.records[0].params.get("min_tokens") or 0)
        yield (
            f"documents: we have {shown} (n above) of at least {least} tokens; theirs as said above, and not "
            "necessarily the same ones"
        )


REPORT = StudyReport(
    subject="perplexity",
    across="context length",
    sections=sections,
    summary=summary,
    row_sets=row_sets,
    figures=("perplexity-*", "long_ppl-*", "position-*"),
    data=("pairs.csv", "positions.csv", "effective.csv"),
    opening=opening,
)
