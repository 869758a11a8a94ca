"""Requests for tasks that are refused, interrupted, or fail in part: what is finished stays, and the reason is said."""

from __future__ import annotations

import re

import pytest
import torch
from carried_out import Failing, carry_out, prefers_report
from own_tasks import CHOICE, GROUP, write_data, write_task

from longeval.backends.base import OutOfMemoryError
from longeval.backends.fake import FakeBackend
from longeval.cli.progress import RunProgress
from longeval.errors import LongEvalError
from longeval.studies.tasks.plan import plan_tasks
from longeval.studies.tasks.run import run_tasks


@pytest.mark.parametrize("same_samples", [False, True])
def test_a_request_that_leaves_out_everything_is_refused(spec, files, same_samples):
    short = write_task(files, CHOICE, write_data(files, words=(60, 400)), "long_ones")
    lengths = (32, 64) if not same_samples else (64, 512)
    with pytest.raises(LongEvalError, match="--overlong skip: leaves nothing to compute") as caught:
        plan_tasks(spec(short, lengths=lengths, overlong="skip", same_samples=same_samples))
    assert ("--same-samples" in caught.value.problem) == same_samples
    assert re.search(r"shortest needs \d+ tokens, the longest \d+", caught.value.problem)
    assert "--overlong middle" in caught.value.remedy


def test_more_samples_than_memory_holds_are_refused_before_one_is_made(spec):
    with pytest.raises(LongEvalError, match=r"--limit 1000000000: .* GiB"):
        plan_tasks(spec("passkey", lengths=(512,), limit=10**9), watch=lambda *said: pytest.fail("made one"))


def test_an_average_tells_what_is_missing_from_what_failed(spec, files, store, tokenizer):
    data = write_data(files, words=(20, 80))
    write_task(files, CHOICE, data, "one_task")
    (files / "long").mkdir()
    write_task(files, CHOICE, write_data(files / "long", words=(400,)), "long_task")
    (files / "both.yaml").write_text(GROUP.format(name="both_tasks", members="one_task, long_task"))
    asked = spec("both_tasks", include=(str(files),), lengths=(256,), overlong="skip")
    broken = carry_out(asked, store, Failing(ZeroDivisionError("a bug"), longest=10))
    assert (broken.records[-1].status, broken.failed) == ("failed", 2)
    assert "one_task failed" in broken.records[-1].error
    mended = carry_out(asked, store, prefers_report(tokenizer))
    whole = mended.records[-1]
    assert (whole.task, whole.value, whole.status, mended.failed) == ("both_tasks", None, "skipped", 0)
    assert whole.error == "no average: long_task has no sample that fits"
    assert store.load(whole.cell).status == "skipped"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OutOfMemoryError("no room"), "out of memory in a window of 512 tokens: no room"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug"),
    ],
)
def test_a_cell_that_fails_says_why_and_the_others_go_on(spec, choice_task, store, error, reason):
    result = carry_out(spec(choice_task, pe=("none", "yarn")), store, Failing(error))
    assert [(record.length, record.status) for record in result.records] == [(64, "ok"), (512, "failed")] * 2
    assert {record.error for record in result.records if record.status == "failed"} == {reason}
    assert result.failed == 2


def test_ctrl_c_loses_no_finished_cell(spec, choice_task, store, tokenizer):
    class Interrupted(FakeBackend):
        def choices(self, requests):
            if len(self.asked) >= 12:
                raise KeyboardInterrupt
            yield from super().choices(requests)

    backend = Interrupted(lambda t, p, _: 0.0 * p, choice=lambda context_T, tokens_S, table: -1.0)
    with pytest.raises(KeyboardInterrupt):
        carry_out(spec(choice_task), store, backend)
    kept = list(store.cells())
    assert [cell.status for cell in kept] == ["ok"]
    assert len(store.samples(kept[0].cell)) == 12
    result = carry_out(spec(choice_task), store, prefers_report(tokenizer))
    assert (result.computed, result.reused) == (1, 1)


def test_a_model_that_cannot_be_loaded_leaves_nothing(spec, choice_task, store):
    def refuse(model):
        raise LongEvalError("no weights")

    with pytest.raises(LongEvalError, match="no weights"):
        run_tasks(plan_tasks(spec(choice_task)), store, RunProgress(quiet=True), load=refuse)
    assert not store.is_run_folder()


def test_lengths_beyond_memory_are_refused_before_weights_are_loaded(spec, monkeypatch):
    monkeypatch.setattr("longeval.run.cost.total_memory", lambda model: 2**30)
    with pytest.raises(
        LongEvalError, match=r"--lengths 1m: an input of 1,048,576 tokens needs about [\d.]+ GiB"
    ) as caught:
        plan_tasks(spec("passkey", lengths=(2**20,), limit=1))
    assert "1.0 GiB" in caught.value.problem and "shorter lengths" in caught.value.remedy
    assert "--device-map" not in caught.value.remedy or torch.cuda.device_count() > 1  # there is nothing to spread over
    monkeypatch.setattr("longeval.run.cost.total_memory", lambda model: 1000)
    with pytest.raises(LongEvalError, match="--lengths 1m") as caught:
        plan_tasks(spec("passkey", lengths=(2**20,), limit=1))
    assert "shorter lengths" not in caught.value.remedy  # not even the weights fit
