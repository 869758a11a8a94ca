"""The GPU checks in the form that runs on a CPU, and that what is cut off or breaks still counts."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from bench.gpu import __main__ as driver
from bench.gpu import equality, finetune, prefill
from bench.gpu.rows import Scale, as_table, read_rows, write_row

CPU = Scale(device="cpu", full=False)


def test_equality_finds_a_wrong_table(monkeypatch):
    rows = list(equality.run(CPU))
    assert all(row["passed"] for row in rows if "passed" in row) and sum("digest" in row["name"] for row in rows) == 9
    control = next(row for row in rows if row["name"].startswith("control"))
    exact = next(row for row in rows if row["name"] == "float32, eager, resonance_yarn")
    assert control["mean |difference|"] > 1000 * exact["largest |difference|"]

    from longeval.backends.hf.backend import HFBackend

    served: list[str] = []

    def wrong_on_the_device(self, table, length, own=HFBackend.serve):
        served.append(self.dtype)
        if len(served) > 4:  # the first four are the references
            table = dataclasses.replace(table, inv_freq_F=table.inv_freq_F * 0.99, period_F=None)
        own(self, table, length)

    monkeypatch.setattr(HFBackend, "serve", wrong_on_the_device)
    failed = [row["name"] for row in equality.run(CPU) if row.get("passed") is False]
    assert "digest of yarn, 1024 rows read back from the device" in failed and "float32, sdpa, none" in failed


def test_prefill_has_rates_beside_estimates():
    _, *rows = prefill.run_prefill(CPU)
    assert [row["name"] for row in rows] == ["tiny at 256", "tiny at 512"]
    assert all(row["estimate / peak"] > 0.5 and row["tokens/s"] > 0 for row in rows)
    (batch,) = prefill.run_batches(CPU)
    assert batch["name"] == "tiny: 4 windows of 64" and batch["largest |difference|"] < 1e-4


def test_training_steps_have_rates_beside_estimates():
    rows = list(finetune.run(CPU))
    assert [row["name"] for row in rows] == [
        f"tiny, window {window}, {kind}" for window in (64, 128) for kind in ("full", "LoRA")
    ]
    # How near the estimate is can be measured only in a process of its own: this one has memory that others freed.
    assert all(row["estimate / peak"] > 0 and row["tokens/s"] > 0 for row in rows)


def test_one_pass_gives_the_curve_of_a_pass_each():
    curve, sliding = prefill.run_shared(CPU)
    assert curve["largest |difference|"] < 1e-4 and sliding["largest |difference|"] < 1e-4


@pytest.mark.parametrize(
    ("code", "end"), [("import time; time.sleep(60)", "cut off"), ("raise SystemExit(3)", "broke"), ("", "done in")]
)
def test_how_a_check_ends_is_said_and_its_rows_are_kept(tmp_path, monkeypatch, code, end):
    check = driver.Check("equality", "Numbers", 2)
    popen = driver.subprocess.Popen

    def started(command, **options):
        write_row(tmp_path / "equality.jsonl", {"name": "before the end", "passed": True})
        return popen([sys.executable, "-c", code], **options)

    monkeypatch.setattr(driver.subprocess, "Popen", started)
    status = driver.run_all([check], CPU, 100, tmp_path)
    assert status == (1 if end == "broke" else 0)
    report = (tmp_path / "report.md").read_text()
    assert f"`equality`: {end}" in report and "| before the end | yes |" in report


def test_a_missed_bound_is_a_failure(tmp_path, monkeypatch):
    def ended(check, scale, limit_s, out):
        write_row(out / f"{check.name}.jsonl", {"name": "slow", "passed": False})
        return "done in 1 s"

    monkeypatch.setattr(driver, "_in_a_process", ended)
    assert driver.run_all([driver.Check("equality", "Numbers", 2)], CPU, 100, tmp_path) == 1
    assert driver.run_all([driver.Check("tests", "Tests", 2)], CPU, 1, tmp_path) == 0  # not begun: no time
    assert "not begun" in (tmp_path / "report.md").read_text()


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_row(path, {"name": "a|b", "ratio": 1.23456})
    with path.open("a") as file:
        file.write('{"name": "c')
    rows = list(read_rows(path))
    assert rows == [{"name": "a|b", "ratio": 1.23456}]
    assert as_table(rows).splitlines()[-1] == "| a\\|b | 1.235 |"
