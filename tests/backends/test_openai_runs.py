"""`--backend openai` from the command line: which stored cells are taken, exit statuses, what a folder remembers."""

from __future__ import annotations

import pytest
import yaml
from words_model import ppl, serve, write_documents, write_task

from longeval.cli.app import run_app
from longeval.cli.run import default_out
from longeval.report.collect import collect
from longeval.store.folder import Store


@pytest.fixture
def command(server, words_model, tmp_path, monkeypatch):
    """A small request that works; `more` are further arguments."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "documents.jsonl")

    def make(*more, out="run", lengths="32,60", model=words_model):
        asked = ["ppl", "--backend", "openai", "--base-url", server.url, "--model", str(model), "--pe", "none"]
        asked += ["--data", "documents.jsonl", "--lengths", lengths]
        return [*asked, *(() if out is None else ("--out", out)), *more]

    return make


def names(folder="run"):
    """The model that each stored cell names."""
    return sorted(cell.records[0].params["served_model"] for cell in Store(folder).cells())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_model_under_the_same_address_is_computed_anew(server, command, capsys):
    assert run_app(command()) == 0
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
    kept = b"".join(contents(tmp_path / "run").values())
    assert server.key not in shown.out + shown.err and server.key.encode() not in kept


def test_a_folder_remembers_which_model_answered(server, command, capsys, tmp_path):
    assert run_app(command()) == 0
    (request,) = yaml.safe_load_all((tmp_path / "run" / "spec.yaml").read_text())
    assert request["served_model"] == "bigram"
    assert run_app(["run", "run/spec.yaml"]) == 0
    assert "0 cells computed, 2 stored already" in capsys.readouterr().err
    serve(server, "another")
    assert run_app(["run", "run/spec.yaml"]) == 2
    assert "--served-model bigram" in capsys.readouterr().err
    assert names() == ["bigram", "bigram"]


def test_the_folder_is_that_of_the_request_as_it_was_typed(server, words_model, command, tmp_path):
    typed = ppl(server, words_model, "documents.jsonl")
    for name in ("bigram", "another"):
        serve(server, name)
        assert run_app(command(out=None)) == 0
    assert names(default_out(typed)) == ["another", "another", "bigram", "bigram"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_report_asks_each_model_for_its_own_cells(server, command, tmp_path):
    def unfinished():
        return [note for note in collect(["run"]).notes if "Not finished" in note]

    assert run_app(command()) == 0
    serve(server, "another", room=41)
    assert run_app(command(lengths="32,40")) == 0
    assert not unfinished()
    (kept,) = [
        cell.cell
        for cell in Store("run").cells()
        if (cell.records[0].params["served_model"], cell.records[0].length) == ("another", 32)
    ]
    (tmp_path / "run" / "cells" / f"{kept}.json").unlink()
    (note,) = unfinished()
    assert "1 of 4 cells" in note


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("room", "said"), [(60, "--lengths 60"), (None, "--base-url http")])
def test_what_the_server_refuses_ends_with_status_2(server, command, capsys, tmp_path, dry_run, room, said):
    if room is None:
        server.close()
    else:
        serve(server, room=room)
    assert run_app(command(*(["--dry-run"] if dry_run else []))) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines()[-1].startswith(f"longeval: {said}")
    assert not (tmp_path / "run" / "cells").exists() and not (tmp_path / "run" / "spec.yaml").exists()


def test_a_dry_run_asks_the_server_and_says_what_is_known(server, command, capsys, tmp_path):
    assert run_app(command("--dry-run")) == 0
    shown = capsys.readouterr()
    assert "(precision unknown): 2 cells in" in shown.out
    assert f"bigram at {server.url}" in shown.err
    assert not (tmp_path / "run" / "cells").exists()


def test_a_wrong_model_ends_with_status_2_also_where_cells_are_stored(command, capsys, tmp_path, shuffled_model):
    assert run_app(command(lengths="32")) == 0
    before = contents(tmp_path / "run")
    assert run_app(command(model=shuffled_model)) == 2
    assert "--model must be" in capsys.readouterr().err
    assert contents(tmp_path / "run") == before


def test_tasks_are_asked_and_named(command, tmp_path, capsys):
    write_task(tmp_path, "generate_until")
    asked = ["tasks", *command(lengths="64")[1:]]
    asked[asked.index("--data") : asked.index("--data") + 2] = ["--tasks", "./generate_until.yaml"]
    assert run_app(asked) == 0
    assert names() == ["bigram"]
    assert run_app(asked) == 0
    assert "0 cells computed, 1 stored already" in capsys.readouterr().err
