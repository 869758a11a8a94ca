"""Tasks as CSV for other programs: scores, paired differences and scores by depth. Nothing is rounded here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longeval.report.flat import csv_text
from longeval.report.rows import GridRow
from longeval.report.task_sections import TaskSection
from longeval.report.task_tables import TaskSet, TaskTable
from longeval.store.records import Record

_PLACE = ("model", "differs", "task", "metric")


def scores_csv(sections: Sequence[TaskSection]) -> str:
    """One line per method, length, task (or average) and metric; values and errors as the records have them."""
    columns = [*_PLACE, "kind", "pe", "factor", "length", "status", "value", "stderr", "ci_low", "ci_high"]
    columns += ["ci_method", "ci_unit", "ci_units", "chance", "n", "documents", "truncated", "skipped", "cell", "error"]
    lines = []
    for section in sections:
        tasks = section.tasks
        kinds = (("main", tasks.tasks), ("average", tasks.groups), ("further", tasks.further))
        for kind, tables in kinds:
            for table in tables:
                for row in table.rows:
                    for length, record in sorted(row.cells.items()):
                        place = _place(tasks, table) | {"kind": kind, "pe": row.label, "length": length}
                        chance = table.chance if kind == "main" else None
                        lines.append(place | {"factor": record.factor, "chance": chance} | _numbers(record))
    return csv_text(columns, lines)


def _numbers(record: Record) -> dict[str, Any]:
    how = record.params.get("ci") or {}
    names = ("status", "value", "ci_low", "ci_high", "n", "documents", "truncated", "skipped", "cell", "error")
    drawn = {"ci_method": how.get("method"), "ci_unit": how.get("kind"), "ci_units": how.get("units")}
    return {name: getattr(record, name) for name in names} | {"stderr": record.params.get("stderr")} | drawn


def score_pairs_csv(sections: Sequence[TaskSection]) -> str:
    """One line per pair, task and length: what the resonance form scores more than its base on the same samples."""
    columns = [
        *_PLACE,
        "base",
        "resonance",
        "factor",
        "length",
        "score_base",
        "score_resonance",
        "difference",
        "stderr",
    ]
    columns += ["ci_low", "ci_high", "ci_method", "p_mcnemar", "base_only", "resonance_only", "n", "documents"]
    columns += ["unmatched", "different", "why_not"]
    lines = []
    for section in sections:
        for pair in section.pairs:
            found = pair.found
            line: dict[str, Any] = {
                "model": section.tasks.model,
                "differs": section.tasks.differs,
                "task": pair.task,
                "metric": pair.metric,
                "base": pair.base.label,
                "resonance": pair.resonance.label,
                "factor": pair.record_base.factor,
                "length": pair.length,
                "score_base": pair.record_base.value if found is None else found.value_a,
                "score_resonance": pair.record_resonance.value if found is None else found.value_b,
                "why_not": pair.why_not,
            }
            if found is not None:
                line |= {name: getattr(found, name) for name in ("difference", "stderr", "ci_low", "ci_high", "n")}
                line |= {
                    "ci_method": (found.how or {}).get("method"),
                    "p_mcnemar": found.p,
                    "documents": found.clusters,
                }
                line |= {"base_only": found.a_only, "resonance_only": found.b_only, "unmatched": found.unmatched}
                line |= {"different": pair.is_different}
            lines.append(line)
    return csv_text(columns, lines)


def depths_csv(sections: Sequence[TaskSection]) -> str:
    """One line per method, length and depth: mean score and number of samples; of a bin, its lower end."""
    columns = [*_PLACE, "pe", "factor", "length", "depth", "binned", "value", "n"]
    lines = []
    for section in sections:
        for depth_map in section.maps:
            depths = depth_map.depths
            for row in depths.rows:
                for (name, length, level), cell in sorted(depths.cells.items(), key=lambda item: item[0]):
                    if name == depths.name(row):
                        line = _place(section.tasks, depths.table) | _row(row, length)
                        shown = {"depth": level, "binned": depths.binned, "value": cell.value, "n": cell.n}
                        lines.append(line | shown)
    return csv_text(columns, lines)


def _place(tasks: TaskSet, table: TaskTable) -> dict[str, Any]:
    return {"model": tasks.model, "differs": tasks.differs, "task": table.title, "metric": table.metric}


def _row(row: GridRow, length: int) -> dict[str, Any]:
    return {"pe": row.label, "factor": row.cells[length].factor, "length": length}
