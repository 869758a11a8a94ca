"""The tables that `longeval posgen train` prints when it is done."""

import io

from posgen_requests import tiny_request
from records import POSGEN_METRICS, make_cell
from rich.console import Console

from longeval.studies.posgen import STUDY

NAMES = ("none", "resonance_dynamic_yarn")


def test_no_number_and_no_name_is_cut_at_80_columns():
    spec = tiny_request()
    seeds = [(pe, seed) for pe in NAMES for seed in (0, 1)]
    cells = [make_cell(spec, pe, seed, [0.98 + 0.01 * seed] * len(POSGEN_METRICS)) for pe, seed in seeds]
    cells.append(make_cell(spec, "none", 2, error="out of memory"))
    console = Console(width=80, record=True, file=io.StringIO())
    for table in STUDY.summary([record for cell in cells for record in cell], 80):
        console.print(table)
    text = console.export_text()
    assert "…" not in text and text.count("98.50 ± 0.71") == len(NAMES) * len(POSGEN_METRICS)
    assert "2, 1 failed" in text
