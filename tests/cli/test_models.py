"""`longeval models`: what can be named, and what is on this machine."""

from __future__ import annotations

import json
import os

import huggingface_hub
import pytest
from command_lines import json_of

from longeval.cli.app import run_app
from longeval.models.embedded import embedded_path


@pytest.fixture(autouse=True)
def own_cache(here, monkeypatch):
    monkeypatch.setenv("LONGEVAL_CACHE", str(here / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "hf"))


def test_json_tells_what_is_here(capsys):
    def listed():
        return {entry["name"]: entry for entry in json_of(capsys, ["models"])}

    assert not any(entry["cached"] for entry in listed().values())
    os.makedirs(embedded_path())
    assert not any(entry["cached"] for entry in listed().values())
    with open(f"{embedded_path()}/origin.json", "w", encoding="utf-8") as note:
        json.dump({"files": {}}, note)
    assert [name for name, entry in listed().items() if entry["cached"]] == ["smollm2-135m-q4"]


def test_plain_lines_when_not_a_terminal(capsys):
    assert run_app(["models"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:4] == ["name", "hub id", "weights", "native"]
    llama = ["llama2-7b", "meta-llama/Llama-2-7b-hf", "6.74B", "4k", "Llama 2 Community, gated", "no"]
    assert llama in [line[:6] for line in lines]


def test_unwritable_json(refused):
    assert "--json none/x.json" in refused(["models", "--json", "none/x.json"])
