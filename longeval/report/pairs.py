"""`--pairs`: any two rows of a report's tables compared, one joint table for each data set or task.

A pair is `A:B` and says how B differs from A. Each side is `[MODEL/]METHOD[@BACKEND]`: a method as rows name it, the
model where it isn't the same on both sides (its last part is enough), and a backend or dtype (`none@hf:none@vllm`).
What stands behind the last slash is the method, so a model may have slashes and an @ in its name, and colons too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from longeval.errors import LongEvalError
from longeval.looks import MARKERS, base_method, is_resonance, look_of, shade
from longeval.report.charts import Axis, Chart, Line, LineStyle, Mark, Panel
from longeval.report.compare import Compared, Found, compare, corrected, count_tested, how_tested
from longeval.report.document import Block, Data, Figure, Heading, Row, Section, Table, TableCell, prose
from longeval.report.lines import beside, decades, is_log_range, length_axis, padded, plain_value
from longeval.report.numbers import counted
from longeval.report.settings import comparable
from longeval.report.tables import DASH, GridRow, factor_text, row_name, slugs_of
from longeval.store.records import Record
from longeval.values import format_length

DATA_NAME = "compared"
"""Name of the file of all comparisons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSet:
    """The rows of one table of a report, all of one model and asked with the same settings."""

    subject: str
    """What was read or asked, and how it is scored; tables of equal subject may be compared across models."""
    model: str
    differs: str
    """In what the table differs from others of the same model and subject; empty if it is the only one."""
    rows: tuple[GridRow, ...]
    found: Callable[[str], Found]
    """Cell id → what it left: token NLLs or samples."""

    @property
    def first(self) -> Record:
        """A record with the backend and dtype of all."""
        return next(iter(self.rows[0].cells.values()))


class _Side(NamedTuple):
    """One side of a pair, as the user wrote it."""

    model: str
    method: str
    at: str
    """Backend or dtype; empty where not given, as is the model."""


class _Place(NamedTuple):
    """One row of one table."""

    rows: RowSet
    row: GridRow


@dataclass(frozen=True, kw_only=True, slots=True)
class _PairRow:
    """One row of the joint table: two rows of the report at all lengths that both have."""

    name_a: str
    name_b: str
    pe_b: str
    cells: dict[int, tuple[Record, Record, Compared]]
    """Length → record of a, record of b, and their comparison."""


def pairs_section(asked: Sequence[str], sets: Sequence[RowSet], *, is_drawn: Callable[[int], bool]) -> Section:
    """The comparisons that a user asked for, corrected for how many there are in all tables.

    Args:
        asked: The pairs, such as `none:yarn`.
        sets: All tables of the report.
        is_drawn: Whether the joint table of this number, from 0, has a figure.

    Raises:
        LongEvalError: A pair isn't in any table; the message names the rows that there are.
    """
    found: dict[str, list[_PairRow]] = defaultdict(list)
    for text in asked:
        places = _places(text, sets)
        for a, b in places:
            names = _name(a, b, sets), _name(b, a, sets)
            row = _PairRow(name_a=names[0], name_b=names[1], pe_b=b.row.pe, cells=_cells(a, b))
            if row not in found[a.rows.subject]:
                found[a.rows.subject].append(row)
    every = [(row, length) for rows in found.values() for row in rows for length in row.cells]
    numbers = corrected([row.cells[length][2] for row, length in every])
    for (row, length), compared in zip(every, numbers, strict=True):
        row.cells[length] = (*row.cells[length][:2], compared)
    blocks: list[Block] = []
    for number, ((subject, rows), slug) in enumerate(zip(found.items(), slugs_of(found), strict=True)):
        blocks += [Heading(text=subject), _table(subject, rows, count_tested(numbers), slug)]
        if is_drawn(number) and (chart := pairs_chart(subject, rows)) is not None:
            description = f"{chart.panels[0].y.title} of pairs by context length, with 95% intervals"
            blocks.append(Figure(name=f"{DATA_NAME}-{slug}", description=description, chart=chart))
    data = Data(name=DATA_NAME, rows=tuple(_data(found)))
    tables = tuple(block for block in blocks if isinstance(block, Table))
    return Section(title="Pairs of rows compared", blocks=tuple(blocks), paper=tables, data=(data,))


def _side(text: str) -> _Side:
    model, _, rest = text.rpartition("/")
    method, _, at = rest.partition("@")
    return _Side(model, method, at)


def _places(text: str, sets: Sequence[RowSet]) -> list[tuple[_Place, _Place]]:
    """The rows that a pair names, those together that can be compared."""
    parts = text.split(":")
    splits = [(":".join(parts[:place]), ":".join(parts[place:])) for place in range(1, len(parts))]
    for first, second in splits:
        sides = _side(first), _side(second)
        places = [list(_rows_of(side, sets)) for side in sides]
        if all(places):
            found = _together(*sides, *places)
            if found:
                return found
            raise LongEvalError(
                f"--pairs {text}: no data set or task has both at one length for models that may be compared",
                f"Rows are {_rows_text(sets)}. MODEL/METHOD:MODEL/METHOD compares two models.",
            )
    why = "no pair" if not splits else "not in this report"
    raise LongEvalError(f"--pairs {text}: {why}", f"Give A:B with rows that are there: {_rows_text(sets)}.")


def _rows_text(sets: Sequence[RowSet]) -> str:
    """`none, yarn (model, hf, float32)` for each model."""
    names: dict[str, dict[str, None]] = defaultdict(dict)
    for rows in sets:
        where = f"{rows.model}, {rows.first.backend}, {rows.first.dtype}"
        names[where] |= dict.fromkeys(row_name(row, rows.rows) for row in rows.rows)
    return "; ".join(f"{', '.join(found)} ({where})" for where, found in names.items())


def _rows_of(side: _Side, sets: Sequence[RowSet]) -> Iterator[_Place]:
    for rows in sets:
        model = rows.model.rstrip("/")
        fits = not side.model or model == side.model or model.endswith(f"/{side.model}")
        if fits and side.at in ("", rows.first.backend, rows.first.dtype):
            for row in rows.rows:
                if side.method in (row.pe, row.label, f"{row.label} s={factor_text(row)}"):
                    yield _Place(rows, row)


def _together(
    side_a: _Side, side_b: _Side, places_a: Sequence[_Place], places_b: Sequence[_Place]
) -> list[tuple[_Place, _Place]]:
    """Places that can be compared: of one table, or of two that differ in what the pair names."""
    found = []
    for b in places_b:
        mine = [a for a in places_a if _may_be_compared(a, b, side_a, side_b)]
        # Where several rows are meant, each goes with those that differ from it in nothing else, if there are any.
        mine = [a for a in mine if a.rows.first.backend == b.rows.first.backend] or mine
        mine = [a for a in mine if a.rows.first.dtype == b.rows.first.dtype] or mine
        mine = [a for a in mine if a.row.factor == b.row.factor] or mine
        mine = [a for a in mine if a.row.of_base == b.row.of_base] or mine
        found += [(a, b) for a in mine]
    return found


def _may_be_compared(a: _Place, b: _Place, side_a: _Side, side_b: _Side) -> bool:
    if a.rows.subject != b.rows.subject or not a.row.cells.keys() & b.row.cells.keys():
        return False
    if a.rows is b.rows:
        return a.row is not b.row
    # A model or a backend that only one side names holds for both.
    models = a.rows.model == b.rows.model or bool(side_a.model and side_b.model)
    ways = [(place.rows.first.backend, place.rows.first.dtype) for place in (a, b)]
    at = ways[0] == ways[1] or bool((side_a.at and side_b.at) or (side_a.model and side_b.model))
    return models and at and (a.rows.model != b.rows.model or ways[0] != ways[1])


def _name(place: _Place, other: _Place, sets: Sequence[RowSet]) -> str:
    """A row's name, with what tells it from the other row and from those of other tables of the subject."""
    rows = place.rows
    name = row_name(place.row, rows.rows)
    same_subject = [one for one in sets if one.subject == rows.subject]
    first, second = rows.first, other.rows.first
    if first.backend != second.backend:
        name += f"@{first.backend}"
    if first.dtype != second.dtype:
        name += f"@{first.dtype}"
    if len({one.model for one in same_subject}) > 1:
        name = f"{rows.model}/{name}"
    if rows.differs and rows is other.rows:
        name += f" ({rows.differs})"
    return name


def _cells(a: _Place, b: _Place) -> dict[int, tuple[Record, Record, Compared]]:
    cells = {}
    for length in sorted(a.row.cells.keys() & b.row.cells.keys()):
        one, other = a.row.cells[length], b.row.cells[length]
        if one.value is None or other.value is None:
            compared = Compared(why_not="one of them has no value")
        elif one.task is not None and not _same_task(a, b, one, other):
            compared = Compared(why_not="the task was asked with other settings, or in another version")
        else:
            compared = compare(one, other, a.rows.found(one.cell), b.rows.found(other.cell))
        cells[length] = one, other, compared
    return cells


_OF_TASK = ("task_version", "task_digest", "num_fewshot", "max_new_tokens", "decoding", "filter")
"""Parameters that decide how answers come about and are scored. Prompts are compared sample by sample."""


def _same_task(a: _Place, b: _Place, one: Record, other: Record) -> bool:
    if a.rows is b.rows:
        return comparable(one, other)
    return all(one.params.get(name) == other.params.get(name) for name in _OF_TASK)


def _table(subject: str, rows: Sequence[_PairRow], num_tested: int, slug: str) -> Table:
    lengths = sorted({length for row in rows for length in row.cells})
    shown = [
        Row(
            cells=(
                TableCell(text=prose("`{}` vs `{}`", row.name_b, row.name_a)),
                *(_cell(row.cells[length][2]) if length in row.cells else DASH for length in lengths),
            )
        )
        for row in rows
    ]
    kinds = {compared.kind for row in rows for *_, compared in row.cells.values()}
    return Table(
        columns=("pair", *map(format_length, lengths)),
        rows=tuple(shown),
        title=subject,
        caption=_caption(is_score="sample" in kinds, num_tested=num_tested),
        notes=tuple(_notes(rows)),
        label=f"compared-{slug}",
    )


def _cell(compared: Compared) -> TableCell:
    if compared.why_not:
        return replace(DASH, mark="†")
    text, interval = compared.shown()
    partly = "‡" if compared.only_a or compared.only_b else ""
    note = f"({said})" if (said := compared.p_text()) else ""
    return TableCell(text=text, interval=interval, note=note, mark=partly, is_strong=compared.is_clear)


def _caption(*, is_score: bool, num_tested: int) -> str:
    what = (
        "Score of the first minus that of the second on the same samples (positive: the first scores more)"
        if is_score
        else "Perplexity of the first relative to that of the second on the same tokens (negative: the first is better)"
    )
    return f"{what}, with the 95% interval. {how_tested(num_tested, is_score=is_score)}"


def _notes(rows: Sequence[_PairRow]) -> Iterator[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    partly: list[str] = []
    for row in rows:
        for length, (*_, compared) in row.cells.items():
            where = f"{row.name_b} vs {row.name_a} {format_length(length)}"
            if compared.why_not:
                reasons[compared.why_not].append(where)
            elif compared.only_a or compared.only_b:
                unit = counted(compared.shared, compared.kind or "")
                partly.append(f"{where} ({unit} in both, {compared.only_a:,} and {compared.only_b:,} in one)")
    for why, places in reasons.items():
        yield f"† not paired, {why}: {'; '.join(places)}"
    if partly:
        yield f"‡ what only one of the two has is left out: {'; '.join(partly)}"


def _data(found: dict[str, list[_PairRow]]) -> Iterator[dict[str, object]]:
    """One row for each comparison, not rounded."""
    names = ("difference", "low", "high", "p", "p_holm", "shared", "only_a", "only_b", "num_different", "largest")
    for subject, rows in found.items():
        for row in rows:
            for length, (one, other, compared) in row.cells.items():
                yield {
                    "subject": subject,
                    "metric": one.metric,
                    "a": row.name_a,
                    "b": row.name_b,
                    "length": length,
                    "value_a": one.value,
                    "value_b": other.value,
                    "unit": compared.kind,
                    **{name: getattr(compared, name) for name in names},
                    "clear": compared.is_clear,
                    "why_not": compared.why_not,
                }


# The figure.


def pairs_chart(subject: str, rows: Sequence[_PairRow]) -> Chart | None:
    """How the second of each pair differs from the first, by length; None where nothing was compared.

    Changes of perplexity are drawn as ratios on a logarithmic axis where these span more than a decade.
    """
    rows = [row for row in rows if any(found.kind for *_, found in row.cells.values())]
    if not rows:
        return None
    compared = [(length, found) for row in rows for length, (*_, found) in row.cells.items() if found.kind]
    lengths = sorted({length for length, _ in compared})
    is_score = compared[0][1].kind == "sample"
    is_log = not is_score and is_log_range([1 + (found.difference or 0.0) for _, found in compared])
    styles = _styles([row.pe_b for row in rows])
    lines = tuple(
        _pair_line(row, style, lengths, place - (len(rows) - 1) / 2, lambda value: _drawn(value, is_score, is_log))
        for place, (row, style) in enumerate(zip(rows, styles, strict=True))
    )
    same = 1.0 if is_log else 0.0
    shown = [same, *(value for line in lines for value in (*line.y, *line.low, *line.high) if value is not None)]
    span = padded(shown, is_log=is_log)
    if is_log:
        ticks = tuple((at, f"× {at:g}") for at in decades(min(shown), max(shown)))
        y = Axis(title="Ratio of perplexities", scale="log", span=span, ticks=ticks)
    else:
        y = Axis(title="Difference of scores" if is_score else "Change of perplexity (%)", span=span)
    x = length_axis(lengths, [at for line in lines for at in line.x])
    panel = Panel(x=x, y=y, lines=lines, marks=(Mark(axis="y", at=same, label=""),))
    return Chart(title=subject, panels=(panel,))


def _drawn(difference: float | None, is_score: bool, is_log: bool) -> float | None:
    """A difference as the axis has it: of scores, in percent, or as a ratio."""
    if difference is None:
        return None
    if is_log:
        return plain_value(1 + difference) or None  # an end that is 0 in float64 has no place
    return plain_value(difference if is_score else 100 * difference)


def _styles(methods: Sequence[str]) -> Iterator[LineStyle]:
    """The look of the second method of each pair; pairs that share its colour have shades and markers of their own."""
    bases = [base_method(pe) for pe in methods]
    for number, (pe, base) in enumerate(zip(methods, bases, strict=True)):
        look = look_of(pe, methods)
        place, several = bases[:number].count(base), bases.count(base)
        yield LineStyle(
            colour=shade(look.colour, place, several),
            dash="dashed" if is_resonance(pe) else "solid",
            marker=look.marker if several == 1 else MARKERS[place % len(MARKERS)],
            is_hollow=is_resonance(pe),
        )


def _pair_line(
    row: _PairRow, style: LineStyle, every: Sequence[int], place: float, drawn: Callable[[float | None], float | None]
) -> Line:
    """One pair at all lengths of the figure, drawn aside by its place."""
    lengths = [length for length in every if length in row.cells]
    found = [row.cells[length][2] for length in lengths]
    notes = [", ".join(filter(None, (counted(one.shared, one.kind or ""), one.p_text()))) for one in found]
    return Line(
        label=f"{row.name_b} vs {row.name_a}",
        style=style,
        x=beside(lengths, every, place),
        y=tuple(drawn(one.difference) for one in found),
        low=tuple(drawn(one.low) for one in found),
        high=tuple(drawn(one.high) for one in found),
        places=tuple(map(format_length, lengths)),
        notes=tuple(notes),
    )
