from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from longeval.cli.doctor import doctor
from longeval.doctor import checks
from longeval.errors import LongEvalError

app = typer.Typer()
app.command()(doctor)


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    from longeval.models import hub

    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LONGEVAL_DATA", raising=False)
    monkeypatch.setattr(hub, "hub_reachable", lambda timeout_s=0: "no network in tests")
    monkeypatch.setattr(checks, "_MATRIX", 64)


def by_name(findings):
    return {check.name: check for check in findings}


def test_json_has_every_check_and_status_zero():
    result = CliRunner().invoke(app, ["--json", "-"])
    assert result.exit_code == 0
    findings = {check["name"]: check for check in json.loads(result.stdout)}
    assert {"python", "torch", "transformers", "cpu", "float32", "bfloat16", "float16", "attention", "vllm"} <= set(
        findings
    )
    assert findings["hub"]["status"] == "warn"
    assert "smollm2-135m-q4" in findings["hub"]["remedy"]
    assert all(check["remedy"] for check in findings.values() if check["status"] != "ok")
    assert "GFLOP/s" in findings["float32"]["detail"]


def test_plain_lines_with_remedies(monkeypatch):
    findings = (
        checks.Check(name="one", status="ok", detail="fine [x]"),
        checks.Check(name="two", status="missing", detail="gone", remedy="Bring it back."),
    )
    monkeypatch.setattr(checks, "examine", lambda: iter(findings))
    lines = CliRunner().invoke(app).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["ok", "one", "fine", "[x]"],
        ["missing", "two", "gone"],
        ["→", "Bring", "it", "back."],
        ["1", "ok,", "0", "to", "know,", "1", "missing"],
    ]


def test_unwritable_json_is_found_before_anything_is_examined(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "examine", lambda: pytest.fail("examined"))
    result = CliRunner().invoke(app, ["--json", str(tmp_path)])
    assert isinstance(result.exception, LongEvalError)
    assert "is a folder" in result.exception.problem


def test_versions_outside_the_supported_range(monkeypatch):
    monkeypatch.setattr(checks, "_wanted", lambda package: {"transformers": ">=5.16.1,<5.20"}.get(package, ""))
    monkeypatch.setattr(checks.importlib.metadata, "version", lambda _: "5.20.1")
    findings = by_name(checks.packages())
    assert findings["transformers"].status == "warn"
    assert "<5.20" in findings["transformers"].remedy
    assert findings["torch"].status == "ok"


def test_supported_range_comes_from_the_package_itself(monkeypatch):
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(checks.importlib.metadata, "requires", {declared["name"]: declared["dependencies"]}.__getitem__)
    assert "<" in checks._wanted("transformers")


def test_unwritable_cache(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "file"))
    (check,) = checks.cache()
    assert check.status == "missing"
    assert "LONGEVAL_CACHE" in check.remedy


def test_cache_size_and_nothing_left_behind(tmp_path):
    (tmp_path / "cache").mkdir()
    with open(tmp_path / "cache" / "big", "wb") as file:
        file.truncate(2**30)
    (check,) = checks.cache()
    assert "1.00 GiB" in check.detail
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["big"]


def test_data_folder_that_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("LONGEVAL_DATA", str(tmp_path / "nothing"))
    (check,) = checks.data()
    assert check.status == "missing"
    assert "LONGEVAL_DATA" in check.detail


def test_local_corpora_are_named(monkeypatch, tmp_path):
    (tmp_path / "leval").mkdir()
    (tmp_path / "leval" / "gov_report_summ.jsonl").touch()
    monkeypatch.setenv("LONGEVAL_DATA", str(tmp_path))
    (check,) = checks.data()
    assert check.status == "ok"
    assert "gov_report" in check.detail


def test_a_slow_dtype_is_told(monkeypatch):
    from longeval.models import device

    monkeypatch.setattr(device, "resolve_device", lambda _: "cpu")
    monkeypatch.setattr(device, "native_bfloat16", lambda _: False)
    monkeypatch.setattr(
        checks, "_multiply_s", lambda dtype, _: {"float32": 1.0, "bfloat16": 2.0, "float16": 100.0}[dtype]
    )
    findings = by_name(checks.dtypes())
    assert [findings[dtype].status for dtype in ("float32", "bfloat16", "float16")] == ["ok", "ok", "warn"]
    assert "--dtype float32 is quicker" in findings["float16"].remedy
