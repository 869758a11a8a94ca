"""The embedded model on a real document: values that were measured independently."""

from __future__ import annotations

import os

import pytest

from longeval.cli.progress import RunProgress
from longeval.plan import plan_ppl
from longeval.run import run
from longeval.spec import PplSpec
from longeval.store import Store

MEASURED = {
    ("none", 2048): 11.18,
    ("none", 4096): 11.75,
    ("yarn", 2048): 11.50,
    ("yarn", 4096): 12.06,
}
"""GovReport document of 24,294 tokens, prefix, yarn with s = 2."""


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get("LONGEVAL_DATA", ""), "leval", "gov_report_summ.jsonl")),
    reason="needs LONGEVAL_DATA with leval/gov_report_summ.jsonl",
)
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
