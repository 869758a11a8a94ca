from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from longeval.cli.models import models
from longeval.errors import LongEvalError
from longeval.models.embedded import embedded_path

app = typer.Typer()
app.command()(models)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("LONGEVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))


def test_json_lists_every_name_and_what_is_here(tmp_path):
    import os

    def listed():
        return {entry["name"]: entry for entry in json.loads(CliRunner().invoke(app, ["--json", "-"]).stdout)}

    before = listed()
    assert before["llama2-7b"] == {
        "name": "llama2-7b",
        "hub_id": "meta-llama/Llama-2-7b-hf",
        "parameters": 6740000000,
        "native_length": 4096,
        "licence": "Llama 2 Community",
        "gated": True,
        "cached": False,
        "note": "the model of the YaRN and Resonance papers",
    }
    assert not any(entry["cached"] for entry in before.values())
    os.makedirs(embedded_path())
    assert not any(entry["cached"] for entry in listed().values())
    with open(f"{embedded_path()}/origin.json", "w", encoding="utf-8") as note:
        json.dump({"files": {}}, note)
    assert [name for name, entry in listed().items() if entry["cached"]] == ["smollm2-135m-q4"]


def test_plain_lines_when_not_a_terminal():
    lines = [line.split("\t") for line in CliRunner().invoke(app).stdout.splitlines()]
    assert lines[0][:4] == ["name", "hub id", "weights", "native"]
    assert ["llama2-7b", "meta-llama/Llama-2-7b-hf", "6.74B", "4k", "Llama 2 Community, gated", "no"] in [
        line[:6] for line in lines
    ]


def test_unwritable_json(tmp_path):
    result = CliRunner().invoke(app, ["--json", str(tmp_path / "none" / "x.json")])
    assert isinstance(result.exception, LongEvalError)
    assert "--json" in result.exception.problem
    assert result.stdout == ""
