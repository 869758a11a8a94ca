"""The embedded models on a real document: values that were measured independently."""

from __future__ import annotations

import os

import pytest

from longeval.cli.progress import RunProgress
from longeval.plan import plan_ppl
from longeval.run import run
from longeval.spec import PplSpec
from longeval.store import Store

NEEDS_DOCUMENT = pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("LONGEVAL_DATA", ""), "leval", "gov_report_summ.jsonl")),
    reason="needs LONGEVAL_DATA with leval/gov_report_summ.jsonl",
)

MEASURED = {
    ("none", 2048): 11.18,
    ("none", 4096): 11.75,
    ("yarn", 2048): 11.50,
    ("yarn", 4096): 12.06,
}
"""GovReport document of 24,294 tokens, prefix, yarn with s = 2."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@NEEDS_DOCUMENT
@pytest.mark.usefixtures("user_cache")
def test_perplexity_of_the_embedded_model_is_what_was_measured(tmp_path):
    spec = PplSpec(
        model=("smollm2-135m-q4",),
        pe=("none", "yarn"),
        lengths=(2048, 4096),
        data=("gov_report",),
        min_tokens=16384,
        factor=2.0,
    )
    result = run(plan_ppl(spec), Store(str(tmp_path / "run")), RunProgress(quiet=True))
    found = {(r.pe, r.length): r.value for r in result.records if r.metric == "perplexity"}
    assert found == {cell: pytest.approx(value, rel=0.01) for cell, value in MEASURED.items()}


LLAMA_CPP = {1024: 20.0185, 2048: 19.4165}
"""Gemma 3 270M on the first GovReport document, prefix: llama.cpp on the dequantised weights, cache in float32."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@NEEDS_DOCUMENT
@pytest.mark.usefixtures("user_cache")
def test_perplexity_of_the_embedded_gemma_is_that_of_llama_cpp(tmp_path):
    spec = PplSpec(
        model=("gemma3-270m-q4",),
        pe=("none", "yarn"),
        lengths=(1024, 2048),
        data=("gov_report",),
        docs=1,
        factor=2.0,
        dtype="float32",
    )
    result = run(plan_ppl(spec), Store(str(tmp_path / "run")), RunProgress(quiet=True))
    records = [r for r in result.records if r.metric == "perplexity"]
    assert {r.length: r.value for r in records if r.pe == "none"} == {
        length: pytest.approx(value, rel=1e-4) for length, value in LLAMA_CPP.items()
    }
    assert all(r.params["bos"] and r.params["native_length"] == 32768 for r in records)
    # Far below its native length the stretched model is only a little worse: a wrong table would ruin it.
    for r in records:
        assert r.value == pytest.approx(LLAMA_CPP[r.length], rel=0.02)
