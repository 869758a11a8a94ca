"""A new study is one folder: a toy of one is put among the studies, and everything finds it there."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"

PROGRAM = f"""
import sys
import longeval.studies
longeval.studies.__path__.append({str(TOY)!r})
from longeval.cli.app import run_app
sys.exit(run_app(sys.argv[1:]))
"""

IN_PYTHON = f"""
import json
import longeval.studies
longeval.studies.__path__.append({str(TOY)!r})
results = longeval.turns(pe=["none"], lengths=["4k"], out="python", quiet=True)
print(json.dumps([record.to_json() for record in results.records]))
"""


@pytest.fixture
def turns(tmp_path, monkeypatch):
    """Runs a command line of a program that has the toy study."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: str = PROGRAM) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)

    return run


def test_commands_records_resume_and_reports_find_a_study_by_its_folder(turns, tmp_path):
    assert "How often the slowest feature" in turns("--help").stdout
    request = ("turns", "--pe", "none,pi", "--lengths", "4k,8k", "--out", "run", "--json", "-")
    first = turns(*request)
    assert first.returncode == 0, first.stderr
    records = {(record["pe"], record["length"]): record["value"] for record in json.loads(first.stdout)}
    slowest = 10000.0 ** (-62 / 64) / (2 * math.pi)  # turns a token of the last of 32 features, θ = 10000
    expected = {("none", 4096): 1.0, ("none", 8192): 2.0, ("pi", 4096): 1.0, ("pi", 8192): 1.0}
    assert records == pytest.approx({key: times * 4096 * slowest for key, times in expected.items()})

    longer = turns(*request[:4], "4k,2m", *request[5:])  # 2m fails: the toy says so
    assert longer.returncode == 3 and "2 stored already" in longer.stderr
    again = turns("run", "run/spec.yaml", "--pe", "pi", "--json", "-")
    assert [record["status"] for record in json.loads(again.stdout)] == ["ok", "ok", "failed"]

    assert turns("report", "run").returncode == 0
    report = (tmp_path / "run" / "report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith("| `pi`"))
    assert [cell.strip() for cell in row.split("|")[3:6]] == [f"{4096 * slowest:.4g}"] * 2 + ["failed"]


def test_python_has_its_function(turns):
    answer = turns(code=IN_PYTHON)
    assert answer.returncode == 0, answer.stderr
    assert [record["metric"] for record in json.loads(answer.stdout)] == ["slowest_turns"]
