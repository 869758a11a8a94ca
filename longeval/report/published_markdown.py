"""The section "Published numbers": tables of papers with ours below, and every difference of setting in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longeval.report.gfm import code, escape_markdown, table_lines
from longeval.report.grid import Grid
from longeval.report.numbers import MISSING, counted, format_factor, format_interval, format_perplexity
from longeval.report.published import AVERAGE, PublishedRow, PublishedSet, published_sets
from longeval.report.rows import GridRow, base_method, factor_text
from longeval.report.task_notes import CHANCE_MARK, is_chance
from longeval.report.task_tables import TaskSet, TaskTable
from longeval.store.records import Record
from longeval.values import format_length, parse_length

_INTRODUCTION = (
    "From papers, and not computed here. Ours stand below them in the same table so that they can be read together; no "
    "conclusion should rest on a difference that the list under a table explains as well."
)


def published_lines(grids: Sequence[Grid], sets: Sequence[TaskSet]) -> list[str]:
    """The section, or a sentence that says that nothing published concerns this report.

    Args:
        grids: Perplexity tables of the report.
        sets: Tasks of the report.
    """
    lines = ["## Published numbers", ""]
    parts: list[str] = []
    for published in published_sets():
        if published.kind == "tasks":
            for tasks in sets:
                tables = {table.task: table for table in tasks.tasks if table.task in published.columns}
                if tables:
                    parts += _task_lines(published, tasks, tables)
        elif published.kind == "perplexity":
            for grid in grids:
                if grid.data == published.data:
                    parts += _perplexity_lines(published, grid)
    if not parts:
        return [*lines, "None of the tables kept in `published.yaml` is about the tasks or data of this report.", ""]
    return [*lines, _INTRODUCTION, "", *parts]


def _heading(published: PublishedSet, model: str) -> list[str]:
    name = escape_markdown(f"{published.name}: {model} beside {published.paper}")
    setting = "".join(f" {escape_markdown(sentence)}" for sentence in published.setting)
    return [f"### {name}", "", f"Source: {escape_markdown(published.source)}.{setting}", ""]


def _task_lines(published: PublishedSet, tasks: TaskSet, tables: dict[str, TaskTable]) -> list[str]:
    columns = [column for column in published.columns if column in tables or column == AVERAGE]
    header = ["whose", "model", "method", "s", "window", "trained on", *map(escape_markdown, columns)]
    rows = [
        [*_published_start(row), *(_percent(row.values.get(column)) for column in columns)] for row in published.rows
    ]
    averages = next((t for t in tasks.groups if set(t.members or ()) == set(published.columns) - {AVERAGE}), None)
    length = max(length for table in tables.values() for length in table.lengths)
    for row in _own_rows(list(tables.values()), length):
        found = {column: _record(tables.get(column), row, length) for column in columns}
        found[AVERAGE] = _record(averages, row, length)
        scores = [_own_percent(averages if c == AVERAGE else tables.get(c), found[c]) for c in columns]
        rows.append([*_own_start(tasks.model, row, length), *scores])
    differences = _task_differences(published, tasks, tables, length)
    if averages is None or not any(record.value is not None for record in averages.records):
        differences.append("no average of ours: not all of its tasks have a score here")
    return [*_heading(published, tasks.model), *table_lines(header, rows, left=3), "", *_difference_lines(differences)]


def _perplexity_lines(published: PublishedSet, grid: Grid) -> list[str]:
    lengths = sorted({parse_length(column) for column in published.columns} | set(grid.lengths))
    header = ["whose", "model", "method", "s", "window", "trained on", *map(format_length, lengths)]
    rows = [
        [*_published_start(row), *(_perplexity(row.values.get(format_length(length))) for length in lengths)]
        for row in published.rows
    ]
    for row in grid.rows:
        records = [row.cells.get(length) for length in lengths]
        rows.append([*_own_start(grid.model, row, None), *map(_own_perplexity, records)])
    differences = _perplexity_differences(published, grid)
    return [*_heading(published, grid.title), *table_lines(header, rows, left=3), "", *_difference_lines(differences)]


def _published_start(row: PublishedRow) -> list[str]:
    factor = "–" if row.factor is None else format_factor(row.factor)
    method = code(row.method) if re.fullmatch("[a-z_0-9]+", row.method) else escape_markdown(row.method)
    return ["published", escape_markdown(row.model), method, factor, row.context or "–", row.tuning or "no"]


def _own_start(model: str, row: GridRow, length: int | None) -> list[str]:
    window = "–" if length is None else format_length(length)
    return ["ours", escape_markdown(model), code(row.label), factor_text(row), window, "no"]


def _own_rows(tables: Sequence[TaskTable], length: int) -> list[GridRow]:
    """Methods with a cell at `length` in any of the tables, each once."""
    rows: dict[tuple[str, str], GridRow] = {}
    for table in tables:
        for row in table.rows:
            if length in row.cells:
                rows.setdefault((row.label, factor_text(row)), row)
    return list(rows.values())


def _record(table: TaskTable | None, row: GridRow, length: int) -> Record | None:
    if table is None:
        return None
    same = (row.label, factor_text(row))
    return next((r.cells.get(length) for r in table.rows if (r.label, factor_text(r)) == same), None)


def _difference_lines(differences: Sequence[str]) -> list[str]:
    return ["What differs:", "", *(f"- {escape_markdown(difference)}" for difference in differences), ""]


def _task_differences(published: PublishedSet, tasks: TaskSet, tables: dict[str, TaskTable], length: int) -> list[str]:
    records = [record for table in tables.values() for record in table.records]
    params = records[0].params
    found = _model_differences(published, tasks.model)
    found.append("unit: percent here, ours converted; fractions from 0 to 1 in our own tables")
    found.append("error: ours have a 95% interval where there is one, and n samples; theirs were published without")
    found.append(f"window: ours at {format_length(length)} tokens, the longest here; theirs as said above")
    policy = params.get("overlong")
    if policy != published.cut:
        found.append(f"cut: theirs by --overlong {published.cut}, ours by --overlong {policy}")
    elif policy is not None and "leval_codeu" in tables:
        found.append("cut: theirs kept the end of CodeU's documents, ours the beginning")
    if any(record.params.get("own_prompts") for record in records):
        found.append("prompts: ours are in longeval's own words, theirs are L-Eval's")
    template = params.get("chat_template")
    if template is not None:
        found.append(f"chat template: {'on' if template else 'off'} in ours; not recorded for theirs")
    tokens = sorted({count for record in records if (count := record.params.get("max_new_tokens")) is not None})
    if published.answers is not None and tokens != [published.answers]:
        shown = " or ".join(f"{count:,}" for count in tokens) or "none"
        found.append(f"answers: theirs have up to {published.answers} new tokens, ours {shown}")
    limits = sorted({limit for record in records if (limit := record.params.get("limit")) is not None})
    if limits:
        found.append(f"samples: theirs are all, ours at most {' or '.join(map(str, limits))} of each task (--limit)")
    if any(is_chance(table, record) for table in tables.values() for record in table.records):
        found.append(f"{CHANCE_MARK}: ours can't be told from guessing; theirs have no errors")
    left_out = [column for column in published.columns if column != AVERAGE and column not in tables]
    if left_out:
        found.append(f"tasks that this report doesn't have: {', '.join(left_out)}")
    return found + _factor_differences(published, [row for table in tables.values() for row in table.rows])


def _perplexity_differences(published: PublishedSet, grid: Grid) -> list[str]:
    found = _model_differences(published, grid.model)
    if grid.protocol != published.protocol:
        found.append(f"protocol: theirs is {published.protocol}, ours {grid.protocol}: the numbers are not comparable")
    stride = grid.records[0].params.get("stride")
    if grid.protocol == published.protocol == "sliding_window_mean" and stride != 256:
        found.append(f"stride: theirs is 256, ours {stride}")
    documents = sorted({record.documents for record in grid.records if record.documents is not None})
    if documents:
        shown = counted(documents[-1], "document")
        shown = shown if len(documents) == 1 else f"{documents[0]} to {shown}"
        least = format_length(grid.records[0].params.get("min_tokens") or 0)
        found.append(
            f"documents: we have {shown} (n above) of at least {least} tokens; theirs as said above, and not "
            "necessarily the same ones"
        )
    return found + _factor_differences(published, grid.rows)


def _model_differences(published: PublishedSet, model: str) -> list[str]:
    theirs = list(dict.fromkeys(row.model for row in published.rows))
    if any(_same_model(name, model) for name in theirs):
        found = [f"model: {model} is one of theirs by its name; other rows are other models"] if len(theirs) > 1 else []
    else:
        found = [f"model: theirs are {', '.join(theirs)}; ours is {model}, another model"]
    if any(row.tuning is not None for row in published.rows):
        found.append("training: rows with an entry under “trained on” were; ours runs the weights as they are")
    return found


def _same_model(theirs: str, ours: str) -> bool:
    """Whether two names say the same model: the same words and sizes, in any order."""
    a, b = (set(re.findall(r"\d+b|[a-z]+|\d+", name.lower())) - {"meta", "hf"} for name in (theirs, ours))
    return a == b


def _factor_differences(published: PublishedSet, rows: Sequence[GridRow]) -> list[str]:
    """Methods that both have, with other factors."""
    found = []
    for base in dict.fromkeys(base_method(row.pe) for row in rows):
        theirs = {row.factor for row in published.rows if base_method(row.method) == base and row.factor is not None}
        ours = {row.factor for row in rows if base_method(row.pe) == base and isinstance(row.factor, float | int)}
        if theirs and ours and theirs != ours:
            shown = [" and ".join(format_factor(float(value)) for value in sorted(values)) for values in (theirs, ours)]
            found.append(f"factor s of {base}: theirs {shown[0]}, ours {shown[1]}")
    return found


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _own_percent(table: TaskTable | None, record: Record | None) -> str:
    if table is None or record is None or record.value is None:
        return MISSING
    text = _percent(100 * record.value)
    if record.ci_low is not None and record.ci_high is not None:
        text += f" [{100 * record.ci_low:.1f}, {100 * record.ci_high:.1f}]"
    text += "" if record.n is None else f" (n {record.n:,})"
    return f"{text} {CHANCE_MARK}" if is_chance(table, record) else text


def _own_perplexity(record: Record | None) -> str:
    if record is None or record.value is None:
        return MISSING
    n = "" if record.documents is None else f" (n {record.documents:,})"
    return " ".join(filter(None, (format_perplexity(record.value), format_interval(record)))) + n


def _perplexity(value: float | None) -> str:
    return MISSING if value is None else format_perplexity(value)
