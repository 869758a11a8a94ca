"""The backends that need no engine keep the contract; vLLM's are held against it where their engines start."""

from __future__ import annotations

import pytest
from completions_server import VOCABULARY
from contract import check_backend
from fake import FakeBackend
from transformers import AutoTokenizer

from longeval.backends.base import BACKENDS, Capabilities, capabilities, check_request
from longeval.backends.hf.backend import HFBackend
from longeval.backends.openai.backend import OpenAIBackend
from longeval.cli.progress import RunProgress
from longeval.errors import LongEvalError
from longeval.models import load
from longeval.models.resolve import resolve
from longeval.rope.base import Geometry
from longeval.rope.build import build_table
from longeval.run.engine import run
from longeval.studies.ppl.plan import plan_ppl

TABLE = build_table("resonance_yarn", Geometry(head_dim=16, theta=10000.0, native_length=64, factor=2.0))


def cheap(tokens_S, positions_S, table):
    """Every token costs 0.1 nats, and so is the most probable one."""
    return positions_S * 0 + 0.1


def test_the_fake(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    backend = FakeBackend(cheap, answer=lambda prompt_T, table: "the report says")
    check_backend(backend, tokenizer, TABLE, 64, ids=range(1, tokenizer.vocab_size))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_hf(tiny_llama, attn):
    model = load.load_model(resolve(str(tiny_llama)), dtype="float32", device="cpu", attn=attn)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    check_backend(HFBackend(model), tokenizer, TABLE, 128, ids=range(1, tokenizer.vocab_size))


@pytest.mark.parametrize("scoring", ["prompt_logprobs", "echo", "echo, one more"])
def test_openai(server, scoring):
    server.scoring = scoring
    backend = OpenAIBackend(base_url=server.url, tokenizer=server.tokenizer)
    check_backend(backend, server.tokenizer, TABLE, 60, ids=range(VOCABULARY), remote=True)
    backend.close()


@pytest.fixture
def toy(monkeypatch):
    """A backend that is registered here and known nowhere else."""
    capabilities("hf")  # the package's own are registered at the first question
    monkeypatch.setattr(BACKENDS, "_things", dict(BACKENDS))
    monkeypatch.setattr(FakeBackend, "name", "toy")
    can = Capabilities(
        load=lambda spec, model: FakeBackend(cheap),
        heeds=frozenset({"dtype"}),
        one_table=True,
        params=lambda spec, length_dependent: {"toy": len(spec.pe)},
    )
    return BACKENDS.register("toy", can)


def test_a_new_backend_is_one_registration(toy, request_spec, store):
    plan = plan_ppl(request_spec(pe=("none", "yarn"), backend="toy", factor=2.0))
    result = run(plan, store, RunProgress(quiet=True))
    assert result.failed == 0
    perplexities = {(r.backend, r.params["toy"], round(r.value, 6)) for r in result.records if r.metric == "perplexity"}
    assert perplexities == {("toy", 2, 1.105171)}  # e^0.1
    assert all(record.rope_digest for record in result.records)


def test_it_declares_what_it_heeds_and_how_many_tables_it_holds(toy, request_spec):
    with pytest.raises(LongEvalError, match=r"^--attn: .*--backend toy.*--backend hf;"):
        check_request(request_spec(backend="toy", attn="eager"))
    with pytest.raises(LongEvalError, match=r"--pe dynamic_ntk: .*--backend toy"):
        plan_ppl(request_spec(backend="toy", pe=("dynamic_ntk",)))


def test_an_unknown_backend_is_refused_with_the_known_ones(toy):
    with pytest.raises(LongEvalError, match=r"--backend tyo.*toy"):
        capabilities("tyo")
