"""What a plan learns from a server before anything is read or computed, and what it refuses then."""

from __future__ import annotations

import json

import pytest
from completions_server import SHUFFLED, make_tokenizer
from words_model import ppl, serve, tasks, write_documents, write_task

from longeval.backends.base import BackendError
from longeval.backends.openai.server import OpenAIServer
from longeval.cli.progress import RunProgress
from longeval.errors import LongEvalError
from longeval.run.engine import run
from longeval.run.setups import ask_server
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.ppl.request import PplRequest
from longeval.studies.tasks.plan import plan_tasks


@pytest.fixture
def asked(server, words_model, tmp_path):
    """The plan of a small request, by study; changes are those of the request."""
    documents = write_documents(tmp_path / "documents.jsonl")

    def plan(study="ppl", *, model=words_model, kind="generate_until", **changes):
        if study == "ppl":
            return plan_ppl(ppl(server, model, documents, **changes))
        return plan_tasks(tasks(server, model, write_task(tmp_path, kind), **changes))

    return plan


def ids(plan):
    return {cell.id for cell in plan.cells}


# Its name.


@pytest.mark.parametrize("study", ["ppl", "tasks"])
def test_records_are_to_name_the_model_that_is_there(server, asked, study):
    plan = asked(study)
    assert {cell.params["served_model"] for cell in plan.cells} == {plan.request.served_model} == {"bigram"}
    assert ids(asked(study, served_model="bigram")) == ids(plan)
    assert ids(asked(study, base_url=f"{server.url}/")) == ids(plan)
    again = (plan_ppl if study == "ppl" else plan_tasks)(plan.request)
    assert ids(again) == ids(plan) and again.request == plan.request
    serve(server, "another")
    other = asked(study)
    assert other.request.served_model == "another" and not ids(other) & ids(plan)


def test_no_other_backend_is_asked(server, words_model):
    request = PplRequest(model=(str(words_model),), pe=("none",), lengths=(32,), data=("stdlib",))
    assert ask_server(request) == (request, None)
    assert server.paths == []


def stop(server):
    server.close()


def lock(server):
    server.key = "secret"


def add_a_model(server):
    server.models = [{"id": "one"}, {"id": "two"}]


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (stop, {}, r"--base-url http://127.0.0.1:\d+/v1: can't be reached"),
        (lock, {}, r"--base-url .*401.*LONGEVAL_API_KEY"),
        (add_a_model, {}, r"--base-url .*\(one, two\).*--served-model"),
        (add_a_model, {"served_model": "three"}, "--served-model three"),
        (serve, {"pe": ("none", "yarn")}, "--pe none,yarn"),
        (serve, {"pe": ("all",)}, "--pe all"),
        (serve, {"model": ("nothing-here", "nor-here")}, "--model nothing-here,nor-here"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_before_anything_is_read(server, monkeypatch, change, settings, said):
    monkeypatch.delenv("LONGEVAL_API_KEY", raising=False)
    change(server)
    for make, plan in ((ppl, plan_ppl), (tasks, plan_tasks)):
        # Neither the model nor what it is to read exists: the server comes first.
        request = make(server, "nothing-here", "nothing.yaml").replaced(**settings)
        with pytest.raises(LongEvalError, match=said):
            plan(request)
    assert server.posts == []


def test_the_key_comes_from_the_environment(server, asked, monkeypatch):
    lock(server)
    monkeypatch.setenv("LONGEVAL_API_KEY", "secret")
    plan = asked()
    assert plan.request.served_model == "bigram"
    assert "secret" not in json.dumps(plan.request.to_mapping()) + json.dumps([cell.params for cell in plan.cells])


@pytest.mark.parametrize("study", ["ppl", "tasks"])
def test_what_this_machine_would_compute_in_decides_nothing(asked, study, monkeypatch):
    plans, resolved = [], []
    for dtype in ("float32", "bfloat16"):
        monkeypatch.setattr("longeval.models.prepare.resolve_dtype", lambda *_, to=dtype: resolved.append(to) or to)
        plans.append(asked(study))
    assert {cell.dtype for plan in plans for cell in plan.cells} == {"unknown"}
    assert resolved == ["float32", "bfloat16"] and ids(plans[0]) == ids(plans[1])


@pytest.mark.parametrize(
    ("settings", "label"),
    [({"pe": ("yarn",)}, "yarn (s = 1)"), ({"pe": ("yarn",), "factor": 2.0}, "yarn (s = 2)"), ({}, "none")],
)
def test_a_plan_says_that_nothing_is_applied(server, asked, settings, label):
    notes = asked(lengths=(32,), **settings).notes
    assert f"bigram at {server.url}" in notes[-1] and f": {label} only labels the results" in notes[-1]
    assert not any("nothing is stretched" in note for note in notes), "whether it is, only the server knows"


# Its room.


@pytest.mark.parametrize(
    ("settings", "room", "said"),
    [
        ({}, 60, r"--lengths 60: .* 61 .* 60\..*--length 60, .*--max-model-len 61"),
        ({"lengths": (2048, 8192)}, 64, r"--lengths 8k: .* 8193 .* 64\..*--length 8k, .*--max-model-len 8193"),
    ],
)
def test_a_window_without_room_for_one_token_more_is_refused(server, words_model, asked, settings, room, said):
    serve(server, room=room)
    with pytest.raises(LongEvalError, match=said):
        plan_ppl(ppl(server, words_model, "nothing-to-read", **settings))
    serve(server, room=61)
    assert len(asked().cells) == 2


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("generate_until", 48),  # 40 and 8
        ("multiple_choice", 44),  # 40, a choice of 3, and one that is generated
    ],
)
def test_what_tasks_really_send_has_to_fit(server, asked, store, kind, needed):
    serve(server, room=needed - 1)
    with pytest.raises(LongEvalError, match=rf"--lengths 64: .*{kind}.* {needed} .*--max-model-len {needed}"):
        asked("tasks", kind=kind)
    # Just that much room is enough, and it is needed: the server itself refuses one token less.
    for room, says, status in ((needed, True, "ok"), (needed - 1, False, "failed")):
        serve(server, room=room, says=says)
        result = run(asked("tasks", kind=kind), store, RunProgress(quiet=True), fresh=True)
        assert {record.status for record in result.records} == {status}


def test_the_task_that_takes_most_is_told(server, words_model, tmp_path):
    longer = tmp_path / "longer"
    longer.mkdir()
    files = (write_task(tmp_path, "generate_until"), write_task(longer, "multiple_choice", words=(30, 52)))
    serve(server, room=40)
    with pytest.raises(LongEvalError, match=r"multiple_choice .*--max-model-len 56"):
        plan_tasks(tasks(server, words_model, *files))


def test_a_server_that_does_not_say_is_found_out_while_it_runs(server, asked, store):
    serve(server, room=40, says=False)
    result = run(asked(), store, RunProgress(quiet=True))
    assert {record.status for record in result.records} == {"failed"}
    assert all("--lengths" in str(record.error) for record in result.records)
    OpenAIServer(base_url="y", model="x", max_length=None).check_room(9, 9, "it")


# Its tokens.


@pytest.mark.parametrize("study", ["ppl", "tasks"])
@pytest.mark.parametrize("scoring", ["prompt_logprobs", "echo"])
def test_another_model_than_model_is_refused_in_the_plan(server, asked, shuffled_model, scoring, study):
    server.scoring = scoring
    with pytest.raises(BackendError, match="--model must be"):
        asked(study, model=shuffled_model)
    assert {len(body["prompt"]) for body in server.posts} == {9}, "nothing but the probe"


def test_a_model_that_is_exchanged_after_the_plan_ends_the_run(server, asked, store):
    plan = asked()
    server.tokenizer = make_tokenizer(words=SHUFFLED)
    with pytest.raises(BackendError, match="--model must be"):
        run(plan, store, RunProgress(quiet=True))
    assert store.read_text("spec.yaml") is None and not any(store.load(cell.id) for cell in plan.cells)


@pytest.mark.parametrize("scoring", ["ignored", "refused"])
def test_perplexity_needs_a_server_that_scores(server, asked, scoring):
    server.scoring = scoring
    with pytest.raises(LongEvalError, match="no log-probabilities"):
        asked()
    assert asked("tasks").cells


def test_a_server_that_fails_at_the_first_question_is_an_error_without_a_traceback(server, asked):
    server.next_answers = [(200, {}, "[1]")]
    with pytest.raises(LongEvalError, match=r"--base-url: .*not an object"):
        asked()
