"""Requests for tasks that are refused, interrupted, or fail in part: what is finished stays, and the reason is said."""

from __future__ import annotations

import re

import pytest
import torch
from carried_out import Failing, carry_out, prefers_report
from own_tasks import CHOICE, write_data, write_group, write_task

from longeval.errors import LongEvalError
from longeval.run.host import Silent
from longeval.studies.tasks.plan import plan_tasks


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
    class Told(Silent):
        def preparing(self, what, done=0, total=0):
            assert not total, "samples are being made"

    with pytest.raises(LongEvalError, match=r"--limit 1000000000: .* GiB"):
        plan_tasks(spec("passkey", lengths=(512,), limit=10**9), Told())


def test_an_average_tells_what_is_missing_from_what_failed(spec, files, store, tokenizer):
    data = write_data(files, words=(20, 80))
    write_task(files, CHOICE, data, "one_task")
    (files / "long").mkdir()
    write_task(files, CHOICE, write_data(files / "long", words=(400,)), "long_task")
    write_group(files, "both_tasks", "one_task, long_task")
    asked = spec("both_tasks", include=(str(files),), lengths=(256,), overlong="skip")
    broken = carry_out(asked, store, Failing(ZeroDivisionError("a bug"), longest=10))
    assert (broken.records[-1].status, broken.failed) == ("failed", 2)
    assert "one_task failed" in broken.records[-1].error
    mended = carry_out(asked, store, prefers_report(tokenizer))
    whole = mended.records[-1]
    assert (whole.task, whole.value, whole.status, mended.failed) == ("both_tasks", None, "skipped", 0)
    assert whole.error == "no average: long_task has no sample that fits"
    assert store.load(whole.cell).status == "skipped"


@pytest.mark.parametrize(("memory", "fits"), [(2**30, True), (1000, False)])  # of the second, not even the weights fit
def test_lengths_beyond_memory_are_refused_before_weights_are_loaded(spec, monkeypatch, memory, fits):
    monkeypatch.setattr("longeval.run.cost.total_memory", lambda model: memory)
    with pytest.raises(LongEvalError, match=r"--lengths 1m: .*1,048,576 tokens .* GiB") as caught:
        plan_tasks(spec("passkey", lengths=(2**20,), limit=1))
    assert ("shorter lengths" in caught.value.remedy) is fits
    assert "--device-map" not in caught.value.remedy or torch.cuda.device_count() > 1  # there is nothing to spread over
