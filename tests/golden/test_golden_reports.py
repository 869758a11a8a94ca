"""From stored run folders to reports: every file that a report writes, and what it says on the terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from golden import EXPECTED, HERE, REPORT_TOLERANCE, WRITE, check_json, check_text, file_names, messages, shown_lines

REPORTS = {
    "ppl": "report runs/ppl",
    "ppl_partial": "report runs/ppl_partial",
    "ppl_failed": "report runs/ppl_failed",
    "ppl_two_folders": "report runs/ppl runs/ppl_other --title Compared --preface preface.md",
    "tasks": "report runs/tasks",
    "tasks_partial": "report runs/tasks_partial",
    "several": "report runs/several --published",
    "several_posgen": "posgen table runs/several",
    "posgen": "posgen table runs/posgen",
    "posgen_partial": "posgen table runs/posgen_partial",
}

PICTURES = (".png", ".svg", ".pdf")


@pytest.mark.parametrize("name", REPORTS)
def test_what_a_report_writes(name, longeval, workplace):
    command = REPORTS[name].split()
    runs = [argument for argument in command if argument.startswith("runs/")]
    for run in runs:
        shutil.copytree(HERE / run, workplace / run)
    Path("preface.md").write_text("What is *compared* here.\n", encoding="utf-8")

    answer = longeval(*command, "--out", "out/report.md", "--json", "records.json")

    written = file_names(Path("out"))
    told = {
        "status": answer.status,
        "stdout": shown_lines(answer.out),
        "messages": messages(answer.err),
        "files": written,
        "records": changes(json.loads(Path("out/report.json").read_text(encoding="utf-8")), runs),
    }
    check_json(f"reports/{name}/told.json", told, tolerance=REPORT_TOLERANCE)
    assert Path("records.json").read_bytes() == Path("out/report.json").read_bytes()
    texts = [file for file in written if not file.endswith(PICTURES) and file != "report.json"]
    if WRITE:
        for old in set(file_names(EXPECTED / "reports" / name)) - {*texts, "told.json"}:
            Path(EXPECTED, "reports", name, old).unlink()
    for file in texts:
        check_text(f"reports/{name}/{file}", Path("out", file).read_bytes().decode(), tolerance=REPORT_TOLERANCE)
    for file in set(written) - set(texts):
        assert Path("out", file).stat().st_size > 0, file
    for run in runs:
        assert file_names(workplace / run) == file_names(HERE / run)


def changes(records, runs):
    """Cell and metric of each record of a report, with the fields that are not as the run folder has them."""
    stored = {}
    for run in runs:
        for path in sorted(Path(run, "cells").iterdir()):
            for record in json.loads(path.read_text(encoding="utf-8"))["records"]:
                stored[record["cell"], record["metric"]] = record
    found = []
    for record in records:
        own = stored[record["cell"], record["metric"]]
        changed = {key: value for key, value in record.items() if key not in own or own[key] != value}
        lacking = [key for key in own if key not in record]
        found.append(" ".join([record["cell"], record["metric"], *map(json.dumps, (changed, lacking))]))
    return found
