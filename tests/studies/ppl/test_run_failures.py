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
from longeval.run.engine import run
from longeval.studies.ppl.plan import plan_ppl


def test_out_of_memory_fails_the_longest_and_the_others_go_on(request_spec, store):
    result = carry_out(request_spec(), store, FakeBackend(log_position, max_tokens=100))
    status = {r.length: r.status for r in result.records}
    assert status == {32: "ok", 64: "ok", 128: "failed"}
    (failed,) = [r for r in result.records if r.status == "failed"]
    assert failed.error.startswith("out of memory in a window of 128 tokens") and failed.value is None
    assert result.failed == 1
    # Next time it is tried again.
    again = carry_out(request_spec(), store, FakeBackend(log_position))
    assert (again.computed, again.reused, again.failed) == (1, 2, 0)


def test_a_nan_fails_only_the_cells_that_hold_it(request_spec, store):
    def broken(tokens_S, positions_S, table):
        return np.where(positions_S == 70, np.nan, 1.0)

    result = carry_out(request_spec(), store, FakeBackend(broken))
    assert {r.length: r.status for r in result.records} == {32: "ok", 64: "ok", 128: "failed"}
    assert "position 70" in next(r.error for r in result.records if r.status == "failed")


def test_documents_that_vanish_after_planning_fail_their_cells(request_spec, store):
    plan = plan_ppl(request_spec())
    os.unlink(plan.work[0].corpus.selection.documents[1].path)
    result = run(plan, store, RunProgress(quiet=True), load=lambda model: FakeBackend(log_position))
    assert {r.status for r in result.records} == {"failed"}
    assert "FileNotFoundError" in result.records[0].error


def test_documents_that_vanish_after_their_pass_fail_their_cells_too(request_spec, store):
    plan = plan_ppl(request_spec(lengths=(64, 128)))
    paths = [document.path for document in plan.work[0].corpus.selection.documents]

    def vanish(tokens_S, positions_S, table):
        for path in paths:
            if os.path.exists(path):
                os.unlink(path)
        return np.ones(len(tokens_S))

    result = run(plan, store, RunProgress(quiet=True), load=lambda model: FakeBackend(vanish))
    assert {r.status for r in result.records} == {"failed"}
    assert "FileNotFoundError" in result.records[0].error


def test_a_length_that_one_data_set_cannot_fill_is_skipped_there(request_spec, store, tmp_path):
    (tmp_path / "short.txt").write_text("a few words only, of a short report")
    documents = request_spec().data[0]
    result = carry_out(request_spec(data=(documents, str(tmp_path / "short.txt"))), store, FakeBackend(log_position))
    skipped = [r for r in result.records if r.status == "skipped"]
    assert len(skipped) == 3 and all("no document of" in r.error for r in skipped)
    assert {r.skipped for r in skipped} == {1}
    assert result.failed == 0


def test_lengths_beyond_every_document_are_refused(request_spec):
    with pytest.raises(LongEvalError, match=r"--lengths 4k \(4096 tokens\): longer than every document"):
        plan_ppl(request_spec(lengths=(64, 4096)))
    with pytest.raises(LongEvalError, match=r"longer than every document"):
        plan_ppl(request_spec(lengths=(64, 1024), protocol="sliding", stride=64))
    # Joined, the same documents fill a longer window.
    assert len(plan_ppl(request_spec(lengths=(64, 1024), protocol="stream", stride=64)).cells) == 2


def test_what_is_asked_for_where_documents_are_too_short_helps(request_spec):
    def remedy(**changes):
        with pytest.raises(LongEvalError, match="longer than every document") as caught:
            plan_ppl(request_spec(**changes))
        return caught.value.remedy

    told = remedy(lengths=(4096,))
    assert "--min-tokens" not in told  # no document is that long
    longest = int(re.search(r"--lengths of (\d+) or less", told)[1])
    assert plan_ppl(request_spec(lengths=(longest,))).cells
    remedy(lengths=(longest + 1,))
    told = remedy(lengths=(64,), min_tokens=100_000)  # there are longer ones, all left out
    assert "lower --min-tokens to 64, or" in told.lower() and "--lengths" not in told
    assert plan_ppl(request_spec(lengths=(64,), min_tokens=64)).cells
    told = remedy(lengths=(4096,), min_tokens=100_000)
    assert f"--lengths of {longest} or less and --min-tokens of {longest} or less" in told
    assert plan_ppl(request_spec(lengths=(longest,), min_tokens=longest)).cells
    told = remedy(lengths=(100_000,), protocol="stream", stride=64)
    total = int(re.search(r"--lengths of (\d+) or less", told)[1])
    assert plan_ppl(request_spec(lengths=(total,), protocol="stream", stride=64)).cells


def test_a_model_whose_frequencies_are_not_its_configs_is_refused(request_spec, store, monkeypatch):
    from longeval.models.scaling import ModelRope

    honest = ModelRope.shipped_table

    def other(self, length):
        table = honest(self, length)
        return dataclasses.replace(table, inv_freq_F=table.inv_freq_F * 1.01)

    monkeypatch.setattr(ModelRope, "shipped_table", other)
    with pytest.raises(LongEvalError, match="doesn't hold the frequencies"):
        carry_out(request_spec(), store)
    assert not os.path.exists(store.path)
