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


def show(table, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_table(table, width))
    shown = console.export_text()
    assert max(map(len, shown.splitlines())) <= width and "…" not in shown
    return shown


def test_notes_stand_below_the_number_rather_than_being_left_out():
    cell = TableCell(text="7.389", interval=("7.1", "7.5"), note="(2 of 3 seeds, n 20)")
    table = Table(columns=("method", "4k"), rows=(Row(cells=(TableCell(text="none"), cell)),), left=1)
    one_line = (6 + 3) + (len("7.389 (2 of 3 seeds, n 20)") + 3) + 1
    stacked = (12 + 3) + (len("(2 of 3 seeds,") + 3) + 1
    assert "7.389 (2 of 3 seeds, n 20)" in show(table, one_line)
    for width in (one_line - 1, stacked):
        shown = show(table, width)
        assert all(part in shown for part in ("7.389", "[7.1, 7.5]", "(2 of 3 seeds,", "n 20)")), shown
        assert "Left out" not in shown


def test_what_is_left_out_is_said_with_the_width_that_shows_it():
    cells = [TableCell(text="7.389", interval=("7.389", "7.389"), note="(n 20)") for _ in range(3)]
    columns = ("method", "4k", "8k", "16k")
    table = Table(columns=columns, rows=(Row(cells=(TableCell(text="resonance_yarn", note="4k"), *cells)),), left=1)
    needed = (12 + 3) + 3 * (len("[7.389, 7.389]") + 3) + 1
    assert show(table, needed).count("[7.389, 7.389]") == 3
    narrow = show(table, needed - 1)
    assert "7.389]" not in narrow and narrow.count("(n 20)") == 3 and str(needed) in narrow
    narrower = show(table, 39)
    assert "(n" not in narrower and narrower.count("7.389") == 3 and "4k" in narrower


def test_long_names_are_broken_rather_than_cut():
    names = [TableCell(text="/".join("abcdefghijklmnopqrstuvwxyz"[at:])) for at in (0, 4, 8)]
    table = Table(columns=("setting", "A", "B"), rows=(Row(cells=tuple(names)),), left=3)
    shown = re.sub("[^a-z]", "", show(table, 60))
    assert sum(shown.count(letter) for letter in "wxyz") == 12


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
