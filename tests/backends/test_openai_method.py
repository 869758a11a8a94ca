"""A server that says which method it has: proven, refused, or not known; and the middleware that says it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from words_model import write_documents

from longeval.backends.served import ServedMethod
from longeval.backends.vllm.card import CONFIG_KEY, MethodCard
from longeval.cli.app import run_app
from longeval.rope.base import Geometry, table_digest
from longeval.rope.build import build_table
from longeval.store.folder import Store

GEOMETRY = Geometry(head_dim=16, theta=10000.0, native_length=64, factor=2.0)
TABLE = build_table("resonance_yarn", GEOMETRY)
LENGTH = 128
OTHER = {"beta_fast": 16.0, "beta_slow": 1.0, "attention_factor": None}


def digest(table, length):
    return table_digest(table.cos_sin(np.arange(length, dtype=np.int64)))


def card(**changes):
    """What `longeval serve --pe resonance_yarn --factor 2` says of the tests' model."""
    parameters = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None}
    told = {"pe": "resonance_yarn", "parameters": parameters, "factor": 2.0, "native_length": 64, "pin_length": None}
    return told | {"length": LENGTH, "rope_digests": [digest(TABLE, LENGTH)]} | changes


@pytest.fixture
def ask(server, words_model, tmp_path, monkeypatch):
    """Runs a request for resonance_yarn, s = 2, on a server that says `told`; exit status, digests by length."""
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "documents.jsonl")

    def run(told, *more, pe="resonance_yarn", factor="2", pe_arg=None):
        server.models = [{"id": "bigram", "max_model_len": 64} | ({} if told is None else {"longeval": told})]
        asked = ["ppl", "--backend", "openai", "--base-url", server.url, "--model", str(words_model), "--pe", pe]
        asked += ["--data", "documents.jsonl", "--lengths", "32,60", "--out", "run", *more]
        asked += [] if pe_arg is None else ["--pe-arg", pe_arg]
        status = run_app([*asked, *([] if factor is None else ["--factor", factor])])
        return status, {cell.records[0].length: cell.records[0].rope_digest for cell in Store("run").cells()}

    return run


def test_what_a_server_proves_is_recorded(ask, capsys):
    assert ask(card()) == (0, {length: digest(TABLE, length) for length in (32, 60)})
    said = capsys.readouterr().err
    assert "says that it computes with resonance_yarn, s = 2" in said and "only labels" not in said
    assert run_app(["report", "run"]) == 0
    report = Path("run/report.md").read_text()
    assert "engine holds the table" in report and "Methods are labels here" not in report


@pytest.mark.parametrize(
    "told",
    [None, "text", {"pe": 5}, card(length="x"), card(length=1 << 40), card(rope_digests=[]), card(pe="x" * 70_000)],
    ids=["nothing", "text", "no method", "no length", "endless", "unseen", "too much"],
)
def test_a_server_that_says_nothing_that_proves_it_stays_unknown(ask, told, capsys):
    assert ask(told) == (0, {32: None, 60: None})
    assert "only labels the results" in capsys.readouterr().err
    assert run_app(["report", "run"]) == 0
    assert "Methods are labels here" in Path("run/report.md").read_text()


@pytest.mark.parametrize(
    ("told", "asked", "remedy"),
    [
        (card(), {"pe": "yarn"}, "Use --pe resonance_yarn, or"),
        (card(), {"pe": "none", "factor": None}, "Use --pe resonance_yarn --factor 2, or"),
        (card(), {"factor": "4"}, "Use --factor 2, or"),
        (card(), {"factor": None}, "Use --factor 2, or"),
        (card(native_length=32), {}, "Use --native 32, or"),
        (card(parameters=OTHER), {}, "Use --pe-arg yarn.beta_fast=16.0, or"),
        (card(), {"pe_arg": "yarn.attention_factor=1"}, "Use no --pe-arg yarn.attention_factor, or"),
        (
            card(parameters=OTHER | {"beta_fast": 32.0, "max_period": 16}),
            {},
            "Use --pe-arg resonance.max_period=16, or",
        ),
        (card(), {"pe_arg": "resonance.max_period=16"}, "Use no --pe-arg resonance.max_period, or"),
        (card(rope_digests=["0" * 64]), {}, "by another table of cosines and sines"),
        (card(rope_digests=[digest(TABLE, LENGTH), "0" * 64]), {}, "by another table of cosines and sines"),
    ],
    ids=[
        "method",
        "method and factor",
        "factor",
        "default factor",
        "native",
        "parameter",
        "own parameter",
        "of resonance",
        "own of resonance",
        "table",
        "two tables",
    ],
)
def test_another_method_is_refused_with_the_remedy(ask, capsys, told, asked, remedy):
    assert ask(told, **asked) == (2, {})
    shown = capsys.readouterr()
    message = shown.err.splitlines()[-1]
    assert remedy in message and "computes with resonance_yarn, s = 2" in message and shown.out == ""


def test_the_remedy_works(ask, capsys):
    assert ask(card(parameters=OTHER), "--dry-run")[0] == 2
    flags = capsys.readouterr().err.partition("Use ")[2].partition(", or")[0].split()
    told = card(parameters=OTHER, rope_digests=[])
    assert ask(told, *flags, "--dry-run")[0] == 0


def test_tasks_are_checked_too(ask, server, words_model, capsys, tmp_path):
    ask(card(), "--dry-run")
    asked = ["tasks", "--backend", "openai", "--base-url", server.url, "--model", str(words_model), "--pe", "yarn"]
    assert run_app([*asked, "--tasks", "passkey", "--lengths", "60", "--limit", "1", "--dry-run"]) == 2
    assert "Use --pe resonance_yarn --factor 2" in capsys.readouterr().err


def test_a_pinned_table_proves_no_method_of_many_tables(ask):
    told = card(pe="dynamic_ntk", parameters={}, factor=None, pin_length=96)
    status, digests = ask(told, pe="dynamic_ntk", factor=None)
    assert (status, digests) == (0, {32: None, 60: None})


def test_flags_that_ask_for_the_same_are_none():
    method = ServedMethod(pe="none", parameters={}, factor=None, native_length=64, length=64)
    assert method.flags_from(method) == []
    assert method.holds(TABLE) is False


class Engine:
    """vLLM's client, whose workers hold what a test says."""

    def __init__(self, *workers):
        self.workers, self.calls = workers, []

    async def collective_rpc(self, name, args):
        self.calls.append((name, args))
        return self.workers


def worker(*digests, others=(), problems=()):
    return {"digests": list(digests), "others": list(others), "problems": list(problems)}


def get(path, engine, *, told=None, status=200):
    """The answer to a GET of a server whose own is a list with one model, in two pieces."""
    body = json.dumps({"object": "list", "data": [{"id": "tiny"}]}).encode()
    sent = []

    async def app(scope, receive, send):
        headers = [(b"content-length", str(len(body)).encode()), (b"x-own", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:9], "more_body": True})
        await send({"type": "http.response.body", "body": body[9:]})

    async def send(message):
        sent.append(message)

    config = SimpleNamespace(**({} if told is None else {CONFIG_KEY: told}))
    state = SimpleNamespace(
        vllm_config=SimpleNamespace(model_config=SimpleNamespace(hf_config=config)), engine_client=engine
    )
    scope = {"type": "http", "path": path, "app": SimpleNamespace(state=state)}
    told_by = MethodCard(app)
    for _ in range(2):  # the engine is asked once
        sent.clear()
        asyncio.run(told_by(scope, None, send))
    start, *parts = sent
    whole = b"".join(part["body"] for part in parts)
    length = dict(start["headers"]).get(b"content-length")
    assert length == str(len(whole)).encode() and (b"x-own", b"1") in start["headers"]
    return whole, json.loads(whole)["data"][0], body


TOLD = {name: value for name, value in card().items() if name != "rope_digests"} | {"keeps_others": False}


def test_the_card_has_the_method_and_what_all_workers_hold():
    engine = Engine(worker("b"), worker("a"), worker("b"))
    _, found, _ = get("/v1/models", engine, told=TOLD)
    assert found == {"id": "tiny", "longeval": card(rope_digests=["a", "b"])}
    assert engine.calls == [("longeval_held_tables", (LENGTH,))]


@pytest.mark.parametrize(
    ("held", "keeps", "digests"),
    [
        (worker("a", problems=["not intact"]), False, []),
        (worker("a", others=["RotaryEmbedding"]), False, []),
        (worker("a", others=["RotaryEmbedding"]), True, ["a"]),
    ],
)
def test_an_engine_that_holds_anything_else_proves_nothing(held, keeps, digests):
    _, found, _ = get("/v1/models", Engine(held), told=TOLD | {"keeps_others": keeps})
    assert found["longeval"]["rope_digests"] == digests


@pytest.mark.parametrize(
    ("path", "told", "status"), [("/v1/completions", TOLD, 200), ("/v1/models", None, 200), ("/v1/models", TOLD, 401)]
)
def test_everything_else_passes_as_it_is(path, told, status):
    engine = Engine(worker("a"))
    whole, _, own = get(path, engine, told=told, status=status)
    assert whole == own and engine.calls == []
