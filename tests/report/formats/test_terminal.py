import io
import re

from records import demo_task_cells, make_nll, make_records
from rich.console import Console

from longeval.cli.report import study_reports
from longeval.report.document import Row, Table, TableCell
from longeval.report.formats.terminal import terminal_table

NLL = make_nll([[2.0] * 8] * 10)
LOWER = make_nll([[1.0] * 8] * 10)


def summaries(records):
    return [table for study in study_reports() for table in study.summary(records)]


def rendered(records, width=120):
    console = Console(width=width, force_terminal=True, color_system="standard", record=True, file=io.StringIO())
    for table in summaries(records):
        console.print(terminal_table(table, width))
    return console.export_text(styles=True)


def test_one_table_per_data_with_best_failed_and_missing_cells():
    records = [
        *make_records("none", 4096, NLL),
        *make_records("yarn", 4096, LOWER),
        *make_records("yarn", 8192, status="failed", error="out of [memory]"),
        *make_records("none", 4096, NLL, data="other"),
    ]
    assert len(summaries(records)) == 2
    text = rendered(records)
    assert "4k" in text and "8k" in text and "[2.718, 2.718]" in text
    assert "\x1b[1m2.718" in text and "\x1b[1m7.389" not in text
    assert "\x1b[31mfailed" in text and "failed: yarn 8k: out of [memory]" in text


def test_intervals_are_left_out_rather_than_cut():
    records = [record for length in (64, 128, 256) for record in make_records("none", length, NLL)]
    table_width = (6 + 3) + (1 + 3) + 3 * (14 + 3) + 1
    assert rendered(records, table_width).count("[7.389, 7.389]") == 3
    narrow = rendered(records, table_width - 1)
    assert "[" not in narrow.replace("\x1b[", "")
    assert narrow.count("7.389") == 3
    assert "…" not in narrow


def test_notes_are_left_out_after_intervals():
    cell = TableCell(text="7.389", interval=("7.1", "7.5"), note="(2 of 3 seeds)")
    table = Table(columns=("method", "4k"), rows=(Row(cells=(TableCell(text="none"), cell)),), left=1)

    def shown(width):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(terminal_table(table, width))
        return console.export_text()

    with_note = (6 + 3) + (len("7.389 (2 of 3 seeds)") + 3) + 1
    assert "[7.1, 7.5]" in shown(with_note) and "(2 of 3 seeds)" in shown(with_note)
    assert "(" not in shown(with_note - 1) and "7.389" in shown(with_note - 1)


def test_tasks_are_blocks_of_one_table():
    text = rendered([record for cell in demo_task_cells() for record in cell[0]], 80)
    for shown in ("toy, downstream tasks", "passkey: accuracy", "[0.58, 0.92]", "0.00 †", "n 18", "\x1b[31mfailed"):
        assert shown in text
    assert "passkey: failed: pi 64: out of memory | try less" in text
    assert "suite: skipped in every cell: no average: books is missing" in text
    assert "samples cut to fit: quality 32: 18, quality 64: 20" in text


def test_errors_of_scores_are_left_out_rather_than_cut():
    cells = demo_task_cells(lengths=(32, 64, 128, 256, 512, 1024))
    records = [record for cell in cells for record in cell[0]]
    narrow = rendered(records, 80)
    assert "[0.58, 0.92]" not in narrow and "…" not in narrow and "resonance_yarn" in narrow
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;]*m", "", narrow).splitlines()) <= 80
    assert "[0.58, 0.92]" in rendered(records, 160)
