"""Cells that fail or have nothing to score: what is recorded, and that the others go on."""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import pytest
from fake import FakeBackend
from known import carry_out, log_position

from longeval.cli.progress import RunProgress
from longeval.errors import LongEvalError
from longeval.models.scaling import ModelRope
from longeval.run.engine import run
from longeval.studies.ppl.plan import plan_ppl


def test_out_of_memory_fails_the_longest_and_the_others_go_on(request_spec, store):
    result = carry_out(request_spec(), store, FakeBackend(log_position, max_tokens=100))
    assert {r.length: r.status for r in result.records} == {32: "ok", 64: "ok", 128: "failed"}
    (failed,) = [r for r in result.records if r.status == "failed"]
    assert "128 tokens" in failed.error and failed.value is None


def test_a_nan_fails_only_the_cells_that_hold_it(request_spec, store):
    def broken(tokens_S, positions_S, table):
        return np.where(positions_S == 70, np.nan, 1.0)

    result = carry_out(request_spec(), store, FakeBackend(broken))
    assert {r.length: r.status for r in result.records} == {32: "ok", 64: "ok", 128: "failed"}
    assert "position 70" in next(r.error for r in result.records if r.status == "failed")


@pytest.mark.parametrize("when", ["before", "during"])
def test_documents_that_vanish_after_planning_fail_their_cells(request_spec, store, when):
    plan = plan_ppl(request_spec(lengths=(64, 128)))
    paths = {document.path for document in plan.work[0].corpus.selection.documents}

    def vanish(*_):
        while paths:
            os.unlink(paths.pop())

    def nll(tokens_S, positions_S, table):
        vanish()
        return np.ones(len(tokens_S))

    if when == "before":
        vanish()
    result = run(plan, store, RunProgress(quiet=True), load=lambda model: FakeBackend(nll))
    assert {r.status for r in result.records} == {"failed"}
    assert "FileNotFoundError" in result.records[0].error


def test_a_length_that_one_data_set_cannot_fill_is_skipped_there(request_spec, store, tmp_path):
    (tmp_path / "short.txt").write_text("a few words only, of a short report")
    documents = request_spec().data[0]
    result = carry_out(request_spec(data=(documents, str(tmp_path / "short.txt"))), store, FakeBackend(log_position))
    skipped = [r for r in result.records if r.status == "skipped"]
    assert [r.skipped for r in skipped] == [1, 1, 1] and all(r.error for r in skipped)
    assert result.failed == 0


STREAM = {"protocol": "stream", "stride": 64}


def advice(request_spec, **changes):
    """What the remedy names where no document is long enough: the lengths, and the least tokens of a document."""
    with pytest.raises(LongEvalError, match="--lengths") as caught:
        plan_ppl(request_spec(**changes))
    found = (re.search(rf"{flag}\D* (\d+)", caught.value.remedy) for flag in ("--lengths", "--min-tokens"))
    return tuple(match and int(match[1]) for match in found)


def test_lengths_beyond_every_document_are_refused_with_what_would_do(request_spec):
    longest, least = advice(request_spec, lengths=(64, 4096))
    assert least is None
    assert plan_ppl(request_spec(lengths=(longest,))).cells
    assert advice(request_spec, lengths=(longest + 1,)) == (longest, None)
    assert advice(request_spec, lengths=(64, longest + 1), protocol="sliding", stride=64) == (longest, None)
    # Where longer documents were left out, fewer tokens may do, or both are needed.
    assert advice(request_spec, lengths=(64,), min_tokens=100_000) == (None, 64)
    assert plan_ppl(request_spec(lengths=(64,), min_tokens=64)).cells
    assert advice(request_spec, lengths=(4096,), min_tokens=100_000) == (longest, longest)
    assert plan_ppl(request_spec(lengths=(longest,), min_tokens=longest)).cells
    # Joined, the same documents fill a longer window.
    total, _ = advice(request_spec, lengths=(100_000,), **STREAM)
    assert total > longest and plan_ppl(request_spec(lengths=(total,), **STREAM)).cells


def test_a_model_whose_frequencies_are_not_its_configs_is_refused(request_spec, store, monkeypatch):
    honest = ModelRope.shipped_table

    def other(self, length):
        table = honest(self, length)
        return dataclasses.replace(table, inv_freq_F=table.inv_freq_F * 1.01)

    monkeypatch.setattr(ModelRope, "shipped_table", other)
    with pytest.raises(LongEvalError, match="frequencies"):
        carry_out(request_spec(), store)
    assert not os.path.exists(store.path)
