"""What a report says of perplexities: tables by context length, paired differences, curves, and what was scored."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longeval.metrics import METRICS, metrics_of
from longeval.metrics.perplexity import PERPLEXITY
from longeval.report.build import MAX_DRAWN, StudyReport
from longeval.report.collect import Collection
from longeval.report.document import (
    Block,
    Bullets,
    Data,
    Figure,
    Heading,
    Paragraph,
    Prose,
    Row,
    Section,
    Table,
    TableCell,
    prose,
)
from longeval.report.facts import codes, method_facts, model_fact, server_notes
from longeval.report.numbers import count_range, counted, format_percent, format_perplexity
from longeval.report.published import (
    PublishedSet,
    comparison_blocks,
    factor_differences,
    model_differences,
    own_row,
    published_columns,
    published_row,
    published_sets,
)
from longeval.report.rows import GridRow, outcome_lines
from longeval.report.tables import DASH, Grid, build_grids, length_columns, method_row, method_rows_of, value_cell
from longeval.stats.bootstrap import PositionCurve, by_position, position_edges
from longeval.store.nll import NLL
from longeval.store.records import Record
from longeval.studies.ppl.pairs import PairCell, PairRow, pair_rows
from longeval.values import format_length, parse_length

# Published perplexities beside ours, and every difference of setting in words.


def published_blocks(grid: Grid) -> Iterator[Block]:
    """A table of each paper on the same data with ours below, and a list of what differs."""
    for published in published_sets():
        if published.kind == "perplexity" and published.data == grid.data:
            table = _table(published, grid)
            yield from comparison_blocks(published, grid.title, table, [*_differences(published, grid)])


def _table(published: PublishedSet, grid: Grid) -> Table:
    lengths = sorted({parse_length(column) for column in published.columns} | set(grid.lengths))
    rows: list[Row] = []
    for theirs in published.rows:
        values = (theirs.values.get(format_length(length)) for length in lengths)
        rows.append(
            published_row(theirs, [DASH if v is None else TableCell(text=format_perplexity(v)) for v in values])
        )
    rows += [
        own_row(grid.model, row, None, [_own_cell(row.cells.get(length)) for length in lengths]) for row in grid.rows
    ]
    return Table(columns=published_columns(map(format_length, lengths)), rows=tuple(rows), left=3)


def _own_cell(record: Record | None) -> TableCell:
    if record is None or record.value is None:
        return DASH
    cell = value_cell(record)
    note = "" if record.documents is None else f"(n {record.documents:,})"
    return TableCell(text=cell.text, interval=cell.interval, note=note)


def _differences(published: PublishedSet, grid: Grid) -> Iterator[str]:
    yield from model_differences(published, grid.model)
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
    yield from factor_differences(published, grid.rows)


_POSITION_BINS = 32
"""Equal bins over the window: narrow enough to show where a curve leaves, wide enough to hold many tokens each."""

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
    found: list[Section] = []
    slugs: set[str] = set()
    for number, grid in enumerate(grids, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", grid.title.lower()).strip("-")[:80] or "table"
        slug = f"{slug}-{number}" if slug in slugs else slug
        slugs.add(slug)
        same_cells = [other for grids_of in others.values() if (other := _same_cells(grid, grids_of)) is not None]
        found.append(_section(grid, slug, same_cells, collection, is_drawn=number <= MAX_DRAWN))
    return found


def summary(records: Sequence[Record]) -> list[Table]:
    """Tables for the terminal."""
    return [replace(perplexity_table(grid), title=f"Perplexity: {grid.title}") for grid in build_grids(records)]


def _section(grid: Grid, slug: str, further: Sequence[Grid], collection: Collection, *, is_drawn: bool) -> Section:
    from longeval.studies.ppl.curves import length_curve  # matplotlib takes its time to import

    pairs = pair_rows(grid, collection.nll)
    positions = _positions(grid, collection)
    table = perplexity_table(grid)
    blocks: list[Block] = [*server_notes(grid.records), table]
    if is_drawn and (curve := length_curve(grid)) is not None:
        blocks.append(Figure(name=f"perplexity-{slug}", description="Perplexity by context length", picture=curve))
    paper = [table]
    if pairs:
        paper.append(_pair_table(grid, pairs))
        blocks += [Heading(text="Resonance against its base"), paper[-1]]
    blocks += [Heading(text="Perplexity by position"), *_position_blocks(grid, positions, slug, is_drawn=is_drawn)]
    for other in further:
        blocks += [Heading(text=other.metric.replace("_", " ").capitalize()), _further_table(other)]
    documents = () if positions is None else positions.documents
    blocks += [Heading(text="What was scored"), *scored_blocks(grid, documents)]
    return Section(
        title=grid.title,
        blocks=tuple(blocks),
        paper=tuple(paper),
        data=(_pair_data(grid, pairs), _position_data(grid, positions)),
        published=tuple(published_blocks(grid)),
        differs=(grid.differs,),
        is_drawn=is_drawn,
    )


def _same_cells(grid: Grid, others: Iterable[Grid]) -> Grid | None:
    """The table of another metric that holds cells of `grid`, if any has a value."""
    cells = {record.cell for record in grid.records}
    for other in others:
        if any(record.cell in cells and record.value is not None for record in other.records):
            return other
    return None


def perplexity_table(grid: Grid) -> Table:
    """Perplexities with their intervals, the best of each length in bold."""
    return Table(
        columns=length_columns(["method"], grid.lengths),
        rows=method_rows_of(grid.rows, grid.lengths, lambda record: _cell(grid, record)),
        title=grid.title,
        caption=_caption(grid),
        notes=tuple(outcome_lines(grid.rows, grid.lengths)),
        label=_label("ppl", grid),
    )


def _cell(grid: Grid, record: Record | None) -> TableCell:
    return value_cell(record, is_best=record is not None and grid.is_best(record))


def _label(kind: str, grid: Grid) -> str:
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", grid.title.lower()).strip("-")


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


def _pair_table(grid: Grid, pairs: Sequence[PairRow]) -> Table:
    """Differences between each method and its resonance form."""
    every = [cell for pair in pairs for cell in pair.cells.values()]
    drawn = next((cell.difference for cell in every if cell.difference is not None), None)
    text = (
        "Relative change of perplexity when the wavelengths of the method are rounded (negative: resonance is better)"
    )
    if drawn is not None:
        text += (
            f", with the {drawn.level:.0%} interval from resampling the same {drawn.kind}s in both. "
            "Bold: the interval excludes 0. The intervals are not corrected for how many there are"
        )
    if any(cell.difference is None for cell in every):
        text += ". Differences without an interval: the token-level NLLs are not stored, or are of other tokens"
    return Table(
        columns=length_columns(["pair"], grid.lengths),
        rows=tuple(
            method_row(
                pair.base,
                [_pair_cell(pair.cells.get(length)) for length in grid.lengths],
                [prose("`{}` vs `{}`", pair.resonance.label, pair.base.label)],
            )
            for pair in pairs
        ),
        title=grid.title,
        caption=f"{text}.",
        label=_label("pairs", grid),
    )


def _pair_cell(cell: PairCell | None) -> TableCell:
    if cell is None:
        return DASH
    found = cell.difference
    interval = None if found is None else (format_percent(found.low), format_percent(found.high))
    is_different = found is not None and found.excludes_zero
    return TableCell(text=format_percent(cell.ratio), interval=interval, is_strong=is_different)


def _pair_data(grid: Grid, pairs: Iterable[PairRow]) -> Data:
    """One row per pair and length: the difference of the resonance form from its base, in percent and in points."""
    difference = ("points", "points_low", "points_high", "excludes_zero", "units", "kind", "level", "resamples", "seed")
    columns = (
        *("model", "data", "protocol", "differs", "base", "resonance", "factor", "length"),
        *("perplexity_base", "perplexity_resonance", "ratio", "ratio_low", "ratio_high"),
        *difference,
    )
    rows = []
    for pair in pairs:
        for length, cell in pair.cells.items():
            base, resonance = cell.base.value, cell.resonance.value
            row = _place(grid) | {
                "base": pair.base.label,
                "resonance": pair.resonance.label,
                "factor": cell.base.factor,
                "length": length,
                "perplexity_base": base,
                "perplexity_resonance": resonance,
                "ratio": cell.ratio,
                "points": None if base is None or resonance is None else resonance - base,
            }
            if (found := cell.difference) is not None:
                row |= {"ratio_low": found.low, "ratio_high": found.high}
                row |= {name: getattr(found, name) for name in difference}
            rows.append(row)
    return Data(name="pairs", columns=columns, rows=tuple(rows))


def _place(grid: Grid) -> dict[str, Any]:
    return {"model": grid.model, "data": grid.data, "protocol": grid.protocol, "differs": grid.differs}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Positions:
    """Curves by position at one length."""

    length: int
    curves: tuple[tuple[GridRow, PositionCurve], ...]
    documents: tuple[str, ...]
    """Names of the documents of the windows."""


def _positions(grid: Grid, collection: Collection) -> _Positions | None:
    """Curves by position at the longest length for which NLLs are stored; None where none are."""
    for length in reversed(grid.lengths):
        edges_K1 = position_edges(length, bins=_POSITION_BINS, spacing="linear")
        curves: list[tuple[GridRow, PositionCurve]] = []
        documents: dict[str, None] = {}
        for row in grid.rows:
            record = row.cells.get(length)
            if record is None or record.status != "ok":
                continue
            nll = collection.nll(record.cell)
            if nll is not None:
                documents |= dict.fromkeys(nll.documents[index] for index in sorted(set(nll.document_W.tolist())))
                curves.append((row, by_position(nll, edges_K1)))
        if curves:
            return _Positions(length=length, curves=tuple(curves), documents=tuple(documents))
    return None


def _position_blocks(grid: Grid, positions: _Positions | None, slug: str, *, is_drawn: bool) -> Iterator[Block]:
    from longeval.studies.ppl.curves import position_curve

    if positions is None:
        yield Paragraph(text="No token-level NLLs are stored with these cells, so there is no curve by position.")
        return
    text = (
        f"Windows of {format_length(positions.length)} tokens; a token at position p was predicted from the p tokens "
        f"before it. Each point is a bin of about {max(1, round(positions.length / _POSITION_BINS)):,} positions."
    )
    if grid.protocol.startswith("sliding"):
        text += " Only the first window of a document is scored at its early positions, later ones only at their end."
    if not is_drawn:
        yield Paragraph(text=prose(f"{text} The numbers are in `positions.csv`."))
        return
    yield Paragraph(text=text)
    picture = position_curve(grid, positions.length, positions.curves)
    yield Figure(name=f"position-{slug}", description="Perplexity by position in the window", picture=picture)


def _position_data(grid: Grid, positions: _Positions | None) -> Data:
    """One row per method and position bin: mean NLL and perplexity of the tokens at positions from ≤ p < to."""
    columns = ("model", "data", "protocol", "differs", "pe", "factor", "length", "from", "to", "tokens")
    rows = []
    for method, curve in () if positions is None else positions.curves:
        for k, (mean, tokens) in enumerate(zip(curve.mean_nll_K.tolist(), curve.tokens_K.tolist(), strict=True)):
            row = _place(grid) | {
                "pe": method.label,
                "factor": method.factor,
                "length": positions.length if positions else None,
                "from": int(curve.edges_K1[k]),
                "to": int(curve.edges_K1[k + 1]),
                "tokens": tokens,
            }
            if tokens:
                row |= {"mean_nll": mean, "perplexity": math.exp(min(mean, 700.0))}
            rows.append(row)
    return Data(name="positions", columns=(*columns, "mean_nll", "perplexity"), rows=tuple(rows))


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
    if documents:
        more = f" and {len(documents) - _MAX_DOCUMENTS} more" if len(documents) > _MAX_DOCUMENTS else ""
        facts.append(prose(f"Documents: {{}}{more}.", codes(documents[:_MAX_DOCUMENTS])))
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


REPORT = StudyReport(
    subject="Perplexity",
    sections=sections,
    summary=summary,
    files=("perplexity-*.png", "perplexity-*.svg", "position-*.png", "position-*.svg", "pairs.csv", "positions.csv"),
)
