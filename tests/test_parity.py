"""`longeval doctor --parity`: the verdict, with backends whose answers are known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from known import log_position

from longeval import cells
from longeval.backends.fake import FakeBackend
from longeval.cli import parity as shown
from longeval.cli.app import run_app
from longeval.cli.progress import RunProgress
from longeval.doctor import parity as module
from longeval.doctor.parity import parity
from longeval.plan import plan_ppl


@pytest.fixture(autouse=True)
def as_if_installed(monkeypatch):
    monkeypatch.setattr(cells, "check_installed", lambda: None)


@pytest.fixture
def plan(request_spec):
    return plan_ppl(request_spec(pe=("none", "yarn"), lengths=(128,), docs=1, backend="vllm", factor=2.0))


class Fake(FakeBackend):
    """Answers alike, whatever the table."""

    def __init__(self, nll=log_position, answer="says so", swap=False):
        super().__init__(nll, answer=lambda prompt_T, table: answer)
        self._swap, self.closed = swap, False

    def serve(self, table, length):
        if self._swap:
            table = type(table)(inv_freq_F=table.inv_freq_F * 1.0001, attention_factor=table.attention_factor)
        super().serve(table, length)

    def close(self):
        self.closed = True


def compared(plan, vllm):
    hf = Fake()
    found = list(
        parity(plan, RunProgress(quiet=True, verbose=False), load_hf=lambda model: hf, load_vllm=lambda model: vllm)
    )
    assert hf.closed
    assert vllm.closed
    return found


def test_equal_sides_are_the_same(plan):
    found = compared(plan, Fake())
    assert [(one.pe, one.factor, one.length, one.verdict) for one in found] == [
        ("none", None, 128, "same"),
        ("yarn", 2.0, 128, "same"),
    ]
    assert all(one.mean_difference == one.max_difference == 0 for one in found)
    assert found[0].tokens == 127
    assert found[0].perplexity_hf == pytest.approx(found[0].perplexity_vllm)
    assert found[0].answer_hf == "says so"


def test_another_table_is_told_even_where_nothing_else_differs(plan):
    found = compared(plan, Fake(swap=True))
    assert [one.verdict for one in found] == ["different", "different"]
    assert all("tables" in one.reasons[0] and len(one.reasons) == 1 for one in found)


@pytest.mark.parametrize(("shift", "verdict"), [(1e-4, "same"), (1e-3, "different"), (np.nan, "different")])
def test_log_probabilities_may_differ_by_rounding_only(plan, shift, verdict):
    found = compared(plan, Fake(lambda t, p, table: log_position(t, p, table) + shift))
    assert [one.verdict for one in found] == [verdict] * 2
    if verdict == "different":
        assert "log-probabilities" in found[0].reasons[0]
    else:
        assert found[0].mean_difference == pytest.approx(1e-4, rel=1e-2)


def test_what_is_printed(plan, monkeypatch, capsys, tiny_llama):
    monkeypatch.setattr(module, "load_backend", lambda model: Fake())
    monkeypatch.setattr(shown, "_plan", lambda *rest: plan)
    for backend, status, said in ((Fake(), 0, "the same within"), (Fake(swap=True, answer="says no"), 3, "different:")):
        monkeypatch.setattr(module, "backend_of", lambda spec, backend=backend: lambda model: backend)
        assert run_app(["doctor", "--parity", "--model", str(tiny_llama)]) == status
        out = capsys.readouterr().out
        assert said in out
        assert ("parts after 5 characters" in out) == (status == 3)


def test_json(plan, monkeypatch, capsys, tiny_llama):
    monkeypatch.setattr(module, "load_backend", lambda model: Fake())
    monkeypatch.setattr(shown, "_plan", lambda *rest: plan)
    monkeypatch.setattr(module, "backend_of", lambda spec: lambda model: Fake())
    assert run_app(["doctor", "--parity", "--model", str(tiny_llama), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["pe"], one["verdict"]) for one in found] == [("none", "same"), ("yarn", "same")]


@pytest.mark.parametrize(
    "arguments", [["--parity"], ["--pe", "yarn"], ["--model", "m"], ["--vllm-arg", "a=1"], ["--parity", "--model", "m"]]
)
def test_wrong_requests(arguments, capsys):
    assert run_app(["doctor", *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1
