"""The report's numbers for other programs: records as CSV and JSON, differences and position curves as CSV.

Nothing is rounded here. Nested parameters become one JSON text per field, so that a record stays one line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from longeval.printable import printable
from longeval.report.sections import Section
from longeval.store.records import Record

_PROVENANCE = ("date", "commit", "dirty", "device", "platform", "command")


def records_json(records: Iterable[Record]) -> str:
    """A JSON array of records, as `--json` of every command writes it."""
    plain = [record.to_json() for record in records]
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def records_csv(records: Sequence[Record], older: Collection[str] = ()) -> str:
    """One line per record: its fields, one column `params.NAME` per parameter, and the main fields of provenance.

    Args:
        records: All records.
        older: Ids of cells that tables leave out for newer ones: true in the last column, `older`.
    """
    names = sorted({name for record in records for name in record.params})
    lines: list[dict[str, Any]] = []
    for record in records:
        plain = record.to_json()
        provenance = plain.pop("provenance")
        params = plain.pop("params")
        line = plain | {f"params.{name}": params.get(name) for name in names}
        line |= {f"provenance.{name}": provenance[name] for name in _PROVENANCE}
        lines.append(line | {"older": record.cell in older})
    return csv_text(list(lines[0]), lines)


def pairs_csv(sections: Sequence[Section]) -> str:
    """One line per pair and length: the difference of the resonance form from its base, in percent and in points."""
    columns = [
        *("model", "data", "protocol", "differs", "base", "resonance", "factor", "length"),
        *("perplexity_base", "perplexity_resonance", "ratio", "ratio_low", "ratio_high"),
        *("points", "points_low", "points_high", "excludes_zero", "units", "kind", "level", "resamples", "seed"),
    ]
    lines = []
    for section in sections:
        grid = section.grid
        for pair in section.pairs:
            for length, cell in pair.cells.items():
                base, resonance = cell.base.value, cell.resonance.value
                line: dict[str, Any] = {
                    "model": grid.model,
                    "data": grid.data,
                    "protocol": grid.protocol,
                    "differs": grid.differs,
                    "base": pair.base.label,
                    "resonance": pair.resonance.label,
                    "factor": cell.base.factor,
                    "length": length,
                    "perplexity_base": base,
                    "perplexity_resonance": resonance,
                    "ratio": cell.ratio,
                    "points": None if base is None or resonance is None else resonance - base,
                }
                if (difference := cell.difference) is not None:
                    line |= {"ratio_low": difference.low, "ratio_high": difference.high}
                    line |= {name: getattr(difference, name) for name in columns[columns.index("points") :]}
                lines.append(line)
    return csv_text(columns, lines)


def positions_csv(sections: Sequence[Section]) -> str:
    """One line per row and position bin: mean NLL and perplexity of the tokens at positions from ≤ p < to."""
    columns = ["model", "data", "protocol", "differs", "pe", "factor", "length", "from", "to", "tokens"]
    columns += ["mean_nll", "perplexity"]
    lines = []
    for section in sections:
        grid = section.grid
        for item in section.position_rows:
            curve = item.curve
            for k, (mean, tokens) in enumerate(zip(curve.mean_nll_K.tolist(), curve.tokens_K.tolist(), strict=True)):
                line: dict[str, Any] = {
                    "model": grid.model,
                    "data": grid.data,
                    "protocol": grid.protocol,
                    "differs": grid.differs,
                    "pe": item.row.label,
                    "factor": item.row.factor,
                    "length": section.position_length,
                    "from": int(curve.edges_K1[k]),
                    "to": int(curve.edges_K1[k + 1]),
                    "tokens": tokens,
                }
                if tokens:
                    line |= {"mean_nll": mean, "perplexity": math.exp(min(mean, 700.0))}
                lines.append(line)
    return csv_text(columns, lines)


def csv_text(columns: Sequence[str], lines: Iterable[dict[str, Any]]) -> str:
    """CSV with a header; a key that a line lacks is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({name: _plain(value) for name, value in line.items()})
    return text.getvalue()


def _plain(value: Any) -> Any:
    """Empty for null, `true`/`false`, JSON for what is nested, printable text; floats as Python writes them."""
    if value is None:
        return ""
    if isinstance(value, bool | dict | list):
        value = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return printable(value) if isinstance(value, str) else value
