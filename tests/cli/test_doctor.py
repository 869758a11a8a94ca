"""`longeval doctor`: every check, its remedy, and what each says of a machine that lacks something."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from command_lines import json_of

from longeval.cli.app import run_app
from longeval.doctor import checks
from longeval.models import device, hub


@pytest.fixture(autouse=True)
def own_places(here, monkeypatch):
    monkeypatch.setenv("LONGEVAL_CACHE", str(here / "cache"))
    monkeypatch.setattr(hub, "hub_reachable", lambda timeout_s=0: "no network in tests")
    monkeypatch.setattr(checks, "_MATRIX", 64)


def by_name(findings):
    return {check.name: check for check in findings}


def test_json_has_every_check_and_status_zero(capsys):
    findings = {check["name"]: check for check in json_of(capsys, ["doctor"])}
    names = {"python", "torch", "transformers", "cpu", "float32", "bfloat16", "float16", "attention", "vllm"}
    assert names <= set(findings)
    assert findings["hub"]["status"] == "warn"
    assert "smollm2-135m-q4" in findings["hub"]["remedy"]
    assert all(check["remedy"] for check in findings.values() if check["status"] != "ok")
    assert "GFLOP/s" in findings["float32"]["detail"]


def test_plain_lines_with_remedies(monkeypatch, capsys):
    findings = (
        checks.Check(name="one", status="ok", detail="fine [x]"),
        checks.Check(name="two", status="missing", detail="gone", remedy="Bring it back."),
    )
    monkeypatch.setattr(checks, "examine", lambda: iter(findings))
    run_app(["doctor"])
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "ok one fine [x]",
        "missing two gone",
        "→ Bring it back.",
        "1 ok, 0 to know, 1 missing",
    ]


def test_unwritable_json_is_found_before_anything_is_examined(monkeypatch, refused):
    monkeypatch.setattr(checks, "examine", lambda: pytest.fail("examined"))
    assert "--json ." in refused(["doctor", "--json", "."])


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


def test_a_cache_that_cannot_be_written_is_missing(monkeypatch, here):
    (here / "file").touch()
    monkeypatch.setenv("LONGEVAL_CACHE", str(here / "file"))
    (check,) = checks.cache()
    assert check.status == "missing"
    assert "LONGEVAL_CACHE" in check.remedy


def test_the_size_of_the_cache_is_told_and_nothing_left_behind(here):
    (here / "cache").mkdir()
    with open(here / "cache" / "big", "wb") as file:
        file.truncate(2**30)
    (check,) = checks.cache()
    assert "1.00 GiB" in check.detail
    assert [entry.name for entry in (here / "cache").iterdir()] == ["big"]


@pytest.mark.parametrize(
    ("folder", "status", "named"), [("nothing", "missing", "LONGEVAL_DATA"), (".", "ok", "gov_report")]
)
def test_the_folder_of_data(monkeypatch, here, folder, status, named):
    (here / "leval").mkdir()
    (here / "leval" / "gov_report_summ.jsonl").touch()
    monkeypatch.setenv("LONGEVAL_DATA", str(here / folder))
    (check,) = checks.data()
    assert check.status == status
    assert named in check.detail


def test_a_slow_dtype_is_told(monkeypatch):
    seconds = {"float32": 1.0, "bfloat16": 2.0, "float16": 100.0}
    monkeypatch.setattr(device, "resolve_device", lambda _: "cpu")
    monkeypatch.setattr(device, "native_bfloat16", lambda _: False)
    monkeypatch.setattr(checks, "_multiply_s", lambda dtype, _: seconds[dtype])
    findings = by_name(checks.dtypes())
    assert [findings[dtype].status for dtype in seconds] == ["ok", "ok", "warn"]
    assert "--dtype float32" in findings["float16"].remedy
