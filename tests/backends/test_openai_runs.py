"""`--backend openai` from the command line: which stored cells are taken, exit statuses, what a folder remembers."""

from __future__ import annotations

import json

import pytest
import yaml
from completions_server import WORDS, CompletionsServer
from words_model import save_words_model, write_documents, write_task

from longeval.cli.app import run_app
from longeval.cli.run import default_out
from longeval.report.collect import collect
from longeval.store.folder import Store
from longeval.studies.ppl.request import PplRequest


@pytest.fixture
def server():
    server = CompletionsServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_words_model(tmp_path_factory.mktemp("models") / "words")


@pytest.fixture
def command(server, model, tmp_path, monkeypatch):
    """A small request that works; `more` are further arguments."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "documents.jsonl")

    def make(*more, out="run", lengths="32,60", model=model):
        asked = ["ppl", "--backend", "openai", "--base-url", server.url, "--model", str(model), "--pe", "none"]
        asked += ["--data", "documents.jsonl", "--lengths", lengths]
        return [*asked, *(() if out is None else ("--out", out)), *more]

    return make


def serve(server, name, room=64):
    server.models = [{"id": name, "max_model_len": room, "limit": room}]


def names(folder="run"):
    """The model that each stored cell names."""
    return sorted(cell.records[0].params["served_model"] for cell in Store(folder).cells())


def test_another_model_under_the_same_address_is_computed_anew(server, command, capsys):
    assert run_app(command()) == 0
    assert run_app(command()) == 0
    assert "0 cells computed, 2 stored already" in capsys.readouterr().err
    serve(server, "another")
    assert run_app(command()) == 0
    assert "2 cells computed; records in run" in capsys.readouterr().err
    assert names() == ["another", "another", "bigram", "bigram"]
    serve(server, "bigram")
    assert run_app(command("--served-model", "bigram")) == 0
    assert "0 cells computed, 2 stored already" in capsys.readouterr().err


def test_the_key_of_the_environment_opens_the_server_and_is_kept_nowhere(
    server, command, capsys, tmp_path, monkeypatch
):
    server.key = "sk-0123456789"
    monkeypatch.setenv("LONGEVAL_API_KEY", server.key)
    assert run_app(command()) == 0
    shown = capsys.readouterr()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert server.key not in shown.out + shown.err and server.key.encode() not in kept


def test_a_folder_remembers_which_model_answered(server, command, capsys, tmp_path):
    assert run_app(command()) == 0
    (request,) = yaml.safe_load_all((tmp_path / "run" / "spec.yaml").read_text())
    assert request["served_model"] == "bigram"
    assert run_app(["run", "run/spec.yaml"]) == 0
    assert "0 cells computed, 2 stored already" in capsys.readouterr().err
    serve(server, "another")
    assert run_app(["run", "run/spec.yaml"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("longeval: --served-model bigram: not at")
    assert names() == ["bigram", "bigram"]


def test_the_folder_is_that_of_the_request_as_it_was_typed(server, model, command, tmp_path):
    typed = PplRequest(
        model=(str(model),),
        pe=("none",),
        lengths=(32, 60),
        data=("documents.jsonl",),
        backend="openai",
        base_url=server.url,
    )
    assert run_app(command(out=None)) == 0
    assert len(names(default_out(typed))) == 2
    serve(server, "another")
    assert run_app(command(out=None)) == 0
    assert names(default_out(typed)) == ["another", "another", "bigram", "bigram"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_report_asks_each_model_for_its_own_cells(server, command, tmp_path):
    assert run_app(command()) == 0
    serve(server, "another", room=41)
    assert run_app(command(lengths="32,40")) == 0
    assert not [note for note in collect(["run"]).notes if "Not finished" in note]
    (kept,) = [
        cell
        for cell in Store("run").cells()
        if cell.records[0].params["served_model"] == "another" and cell.records[0].length == 32
    ]
    (tmp_path / "run" / "cells" / f"{kept.cell}.json").unlink()
    (note,) = [note for note in collect(["run"]).notes if "Not finished" in note]
    assert "1 of 4 cells has no record yet: none at 32" in note


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("room", "said"), [(60, "--lengths 60: a window of 60 tokens takes 61"), (None, "--base-url http")]
)
def test_what_the_server_refuses_ends_with_status_2(server, command, capsys, tmp_path, dry_run, room, said):
    if room is None:
        server.close()
    else:
        serve(server, "bigram", room)
    assert run_app(command(*(["--dry-run"] if dry_run else []))) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines()[-1].startswith(f"longeval: {said}")
    assert not (tmp_path / "run" / "cells").exists() and not (tmp_path / "run" / "spec.yaml").exists()


def test_a_dry_run_asks_the_server_and_says_what_is_known(server, command, capsys, tmp_path):
    assert run_app(command("--dry-run")) == 0
    shown = capsys.readouterr()
    assert "(precision unknown): 2 cells in" in shown.out
    assert f"bigram at {server.url} rotates as it was started" in shown.err
    assert not (tmp_path / "run" / "cells").exists()


def test_a_wrong_model_ends_with_status_2_also_where_cells_are_stored(command, capsys, tmp_path, tmp_path_factory):
    assert run_app(command(lengths="32")) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    words = [*WORDS[:3], *reversed(WORDS[3:])]
    wrong = save_words_model(tmp_path_factory.mktemp("models") / "other", words=words)
    assert run_app(command(model=wrong)) == 2
    assert "--model must name the model that the server serves" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_tasks_are_asked_and_named(server, model, command, tmp_path, capsys):
    write_task(tmp_path, "generate_until")
    asked = ["tasks", *command("--json", "-", lengths="64")[1:]]
    asked[asked.index("--data") : asked.index("--data") + 2] = ["--tasks", "./generate_until.yaml"]
    assert run_app(asked) == 0
    records = json.loads(capsys.readouterr().out)
    assert {(r["backend"], r["dtype"], r["params"]["served_model"]) for r in records} == {
        ("openai", "unknown", "bigram")
    }
    assert run_app(asked) == 0
    assert "0 cells computed, 1 stored already" in capsys.readouterr().err
