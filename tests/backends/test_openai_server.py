"""What a plan learns from a server before anything is read or computed, and what it refuses then."""

from __future__ import annotations

import json

import pytest
from completions_server import WORDS, CompletionsServer, make_tokenizer
from words_model import ppl, save_words_model, tasks, write_documents, write_task

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
def server():
    server = CompletionsServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_words_model(tmp_path_factory.mktemp("models") / "words")


@pytest.fixture
def documents(tmp_path):
    return write_documents(tmp_path / "documents.jsonl")


def serve(server, name="bigram", room=64, *, says=True):
    """Has the server serve a model with so much room."""
    server.models = [{"id": name, "limit": room} | ({"max_model_len": room} if says else {})]


def ids(plan):
    return {cell.id for cell in plan.cells}


# Its name.


def test_records_are_to_name_the_model_that_is_there(server, model, documents):
    request = ppl(server, model, documents)
    plan = plan_ppl(request)
    assert (request.served_model, plan.request.served_model) == (None, "bigram")
    assert [cell.params["served_model"] for cell in plan.cells] == ["bigram", "bigram"]
    assert ids(plan_ppl(ppl(server, model, documents, served_model="bigram"))) == ids(plan)
    assert ids(plan_ppl(ppl(server, model, documents, base_url=f"{server.url}/"))) == ids(plan)
    assert ids(plan_ppl(plan.request)) == ids(plan) and plan_ppl(plan.request).request == plan.request
    serve(server, "another")
    other = plan_ppl(request)
    assert other.request.served_model == "another" and not ids(other) & ids(plan)


def test_tasks_name_it_too(server, model, tmp_path):
    request = tasks(server, model, write_task(tmp_path, "generate_until"))
    plan = plan_tasks(request)
    (cell,) = plan.cells
    assert cell.params["served_model"] == plan.request.served_model == "bigram"
    serve(server, "another")
    assert not ids(plan_tasks(request)) & ids(plan)


def test_no_other_backend_is_asked(server, model, documents):
    request = PplRequest(model=(str(model),), pe=("none",), lengths=(32,), data=(str(documents),))
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
        (lock, {}, r"--base-url .*: the server wants a key \(401\), none is given\. .*LONGEVAL_API_KEY"),
        (add_a_model, {}, r"--base-url .*: has several models \(one, two\)\. Name one with --served-model"),
        (add_a_model, {"served_model": "three"}, r"--served-model three: not at"),
        (serve, {"pe": ("none", "yarn")}, r"--pe none,yarn: a server computes with the one method that it was"),
    ],
)
def test_a_server_that_cannot_be_used_is_told_before_anything_is_read(server, monkeypatch, change, settings, said):
    monkeypatch.delenv("LONGEVAL_API_KEY", raising=False)
    change(server)
    for make, plan in ((ppl, plan_ppl), (tasks, plan_tasks)):
        # Neither the model nor what it is to read exists: the server comes first.
        request = make(server, "nothing-here", "nothing.yaml", **settings)
        with pytest.raises(LongEvalError, match=said):
            plan(request)
    assert server.posts == []


def test_a_server_has_one_model(server):
    for make, plan in ((ppl, plan_ppl), (tasks, plan_tasks)):
        request = make(server, "nothing-here", "nothing.yaml").replaced(model=("nothing-here", "nor-here"))
        with pytest.raises(LongEvalError, match=r"--model nothing-here,nor-here: a server computes with one model"):
            plan(request)


def test_the_key_comes_from_the_environment(server, model, documents, monkeypatch):
    lock(server)
    monkeypatch.setenv("LONGEVAL_API_KEY", "secret")
    plan = plan_ppl(ppl(server, model, documents))
    assert plan.request.served_model == "bigram"
    assert "secret" not in json.dumps(plan.request.to_mapping()) + json.dumps([cell.params for cell in plan.cells])


def test_what_this_machine_would_compute_in_decides_nothing(server, model, documents, tmp_path, monkeypatch):
    request, task = ppl(server, model, documents), tasks(server, model, write_task(tmp_path, "generate_until"))
    plans = plan_ppl(request), plan_tasks(task)
    assert {cell.dtype for plan in plans for cell in plan.cells} == {"unknown"}
    here = plans[0].work[0].model.dtype
    other = "float32" if here == "bfloat16" else "bfloat16"
    monkeypatch.setattr("longeval.models.prepare.resolve_dtype", lambda name, device: other)
    again = plan_ppl(request), plan_tasks(task)
    assert again[0].work[0].model.dtype == other
    assert [ids(plan) for plan in again] == [ids(plan) for plan in plans]


def test_a_plan_says_that_nothing_is_applied(server, model, documents):
    notes = plan_ppl(ppl(server, model, documents, lengths=(32,), pe=("yarn",))).notes
    assert not any("nothing is stretched" in note for note in notes), "whether it is, only the server knows"
    note = notes[-1]
    assert note.startswith(
        f"--backend openai: bigram at {server.url} rotates as it was started. longeval applies nothing"
    )
    assert note.endswith("can't check what is: yarn (s = 1) only labels the results, right or wrong")
    plan = plan_ppl(ppl(server, model, documents, lengths=(32,), pe=("yarn",), factor=2.0))
    assert ": yarn (s = 2) only labels" in plan.notes[-1]
    plan = plan_ppl(ppl(server, model, documents, lengths=(32,), pe=("resonance",)))
    assert ": resonance only labels the results, right or wrong" in plan.notes[-1]


# Its room.


def test_a_window_without_room_for_one_token_more_is_refused(server, model, documents):
    serve(server, room=60)
    with pytest.raises(LongEvalError) as caught:
        plan_ppl(ppl(server, model, "nothing-to-read"))
    assert caught.value.problem == (
        "--lengths 60: a window of 60 tokens takes 61 there, since a server generates one at least, and bigram at "
        f"{server.url} has room for 60"
    )
    assert caught.value.remedy == (
        "Ask for shorter --lengths, or start the server with more room: longeval serve --length 60, or vLLM's "
        "--max-model-len 61."
    )
    serve(server, room=61)
    assert len(plan_ppl(ppl(server, model, documents)).cells) == 2


def test_the_remedy_speaks_of_the_longest_window_as_users_write_it(server, model):
    with pytest.raises(
        LongEvalError, match=r"^--lengths 8k: a window of 8192 .* takes 8193 .* room for 64\."
    ) as caught:
        plan_ppl(ppl(server, model, "nothing-to-read", lengths=(2048, 8192)))
    assert "longeval serve --length 8k, or vLLM's --max-model-len 8193." in caught.value.remedy


@pytest.mark.parametrize(
    ("kind", "needed", "answer"),
    [
        ("generate_until", 48, r"its answer of up to 8 \(--max-new-tokens\)"),  # 40 and 8
        ("multiple_choice", 44, "an answer of at least one token"),  # 40, a choice of 3, and one that is generated
    ],
)
def test_what_tasks_really_send_has_to_fit(server, model, tmp_path, store, kind, needed, answer):
    request = tasks(server, model, write_task(tmp_path, kind))
    serve(server, room=needed - 1)
    said = (
        rf"^--lengths 64: the longest prompt of {kind} with {answer} takes {needed} tokens, and bigram at .* has room "
        rf"for {needed - 1}\. .*--length 64, or vLLM's --max-model-len {needed}\."
    )
    with pytest.raises(LongEvalError, match=said):
        plan_tasks(request)
    # Just that much room is enough, and it is needed: the server itself refuses one token less.
    for room, says, status in ((needed, True, "ok"), (needed - 1, False, "failed")):
        serve(server, room=room, says=says)
        result = run(plan_tasks(request), store, RunProgress(quiet=True), fresh=True)
        assert {record.status for record in result.records} == {status}


def test_the_task_that_takes_most_is_told(server, model, tmp_path):
    longer = tmp_path / "longer"
    longer.mkdir()
    files = (write_task(tmp_path, "generate_until"), write_task(longer, "multiple_choice", words=(30, 52)))
    serve(server, room=40)
    with pytest.raises(LongEvalError, match=r"multiple_choice .* takes 56 tokens.*--max-model-len 56\."):
        plan_tasks(tasks(server, model, *files))


def test_a_server_that_does_not_say_is_found_out_while_it_runs(server, model, documents, store):
    serve(server, room=40, says=False)
    result = run(plan_ppl(ppl(server, model, documents)), store, RunProgress(quiet=True))
    assert {record.status for record in result.records} == {"failed"}
    assert all("the server refuses a request of that length" in str(record.error) for record in result.records)
    assert {record.dtype for record in result.records} == {"unknown"}


def test_room_is_looked_at_where_there_is_a_server_that_tells():
    for room in (None, 9):
        OpenAIServer(base_url="y", model="x", max_length=room).check_room(9, 9, "it")
    with pytest.raises(LongEvalError):
        OpenAIServer(base_url="y", model="x", max_length=8).check_room(9, 9, "it")


# Its tokens.


@pytest.fixture(scope="module")
def other_model(tmp_path_factory):
    words = [*WORDS[:3], *reversed(WORDS[3:])]
    return save_words_model(tmp_path_factory.mktemp("models") / "other", words=words)


@pytest.mark.parametrize("scoring", ["prompt_logprobs", "echo"])
def test_another_model_than_model_is_refused_in_the_plan(server, other_model, tmp_path, scoring):
    server.scoring = scoring
    requests = (
        (plan_ppl, ppl(server, other_model, write_documents(tmp_path / "documents.jsonl"))),
        (plan_tasks, tasks(server, other_model, write_task(tmp_path, "generate_until"))),
    )
    for plan, request in requests:
        server.posts.clear()
        with pytest.raises(BackendError, match=r"reads our token ids of .*--model must name the model that the server"):
            plan(request)
        assert {len(body["prompt"]) for body in server.posts} == {9}, "nothing but the probe"


def test_a_model_that_is_exchanged_after_the_plan_ends_the_run(server, model, documents, store):
    plan = plan_ppl(ppl(server, model, documents))
    server.tokenizer = make_tokenizer(words=[*WORDS[:3], *reversed(WORDS[3:])])
    with pytest.raises(BackendError, match="--model must name the model"):
        run(plan, store, RunProgress(quiet=True))
    assert store.read_text("spec.yaml") is None and not any(store.load(cell.id) for cell in plan.cells)


@pytest.mark.parametrize("scoring", ["ignored", "refused"])
def test_perplexity_needs_a_server_that_scores(server, model, documents, tmp_path, scoring):
    server.scoring = scoring
    with pytest.raises(LongEvalError, match="no log-probabilities of a prompt's tokens, which choices and perplexity"):
        plan_ppl(ppl(server, model, documents))
    assert plan_tasks(tasks(server, model, write_task(tmp_path, "generate_until"))).cells


def test_a_server_that_fails_at_the_first_question_is_an_error_without_a_traceback(server, model, documents):
    server.next_answers = [(200, {}, "[1]")]
    with pytest.raises(LongEvalError, match=r"--base-url: .*answers with JSON that is no object\. Its log may say why"):
        plan_ppl(ppl(server, model, documents))
