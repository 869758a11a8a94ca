"""Downstream tasks from spec to records, with a backend whose answers are known and with a tiny real model."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from carried_out import carry_out, prefers_report
from own_tasks import CHOICE, write_data, write_group, write_task
from slow_start import PASS_S, SlowStart

from longeval.errors import LongEvalError
from longeval.rope.base import table_digest
from longeval.run.engine import run
from longeval.run.host import Silent
from longeval.stats.scores import score
from longeval.studies.ppl.plan import plan_ppl
from longeval.studies.tasks.definitions.guards import quiet
from longeval.studies.tasks.plan import plan_tasks


def test_scores_are_what_the_answers_make_them(spec, choice_task, store, tokenizer):
    (record,) = carry_out(spec(choice_task, lengths=(512,)), store, prefers_report(tokenizer)).records
    assert (record.metric, record.value, record.n, record.documents) == ("accuracy", 0.5, 12, 3)
    assert (record.truncated, record.skipped, record.status, record.task) == (0, 0, "ok", "which_word")
    params = record.params
    assert params["chance"] == 0.5 and params["own_prompts"] and params["primary"] and params["higher_is_better"]
    assert not params["chat_template"] and params["overlong"] == "middle" and params["num_fewshot"] == 0
    samples = store.samples(record.cell)
    assert [sample.index for sample in samples] == list(range(12))
    assert [sample.scores["accuracy"] for sample in samples] == [1, 1, 1, 0, 0, 0] * 2
    assert [sample.target for sample in samples[:4]] == ["report"] * 3 + ["model"]
    got = score(samples, "accuracy", seed=0)
    assert (params["stderr"], record.ci_low, record.ci_high) == (got.stderr, got.ci_low, got.ci_high)


def test_the_start_of_an_engine_is_no_part_of_a_cells_time(spec, choice_task, store, monkeypatch):
    backend = SlowStart(lambda t, p, _: 0.0 * p, choice=lambda context_T, tokens_S, table: -1.0)
    monkeypatch.setattr("longeval.studies.tasks.work.time", backend.clock)
    plan = plan_tasks(spec(choice_task, pe=("none", "yarn"), lengths=(512,)))
    result = run(plan, store, backend.progress(), load=lambda model: backend)
    assert [record.elapsed_s for record in result.records] == [12 * PASS_S, 12 * PASS_S]
    assert [event.split()[0] for event in backend.events] == ["start", "none", "start", "yarn"]


def test_other_generation_settings_are_other_answers_and_nothing_else(
    spec, choice_task, answer_task, store, tiny_llama, request_spec, tmp_path
):
    folder = str(shutil.copytree(tiny_llama, tmp_path / "model"))
    asked = spec(choice_task, answer_task, model=(folder,), lengths=(512,), limit=2)
    perplexity = request_spec(model=(folder,), lengths=(64,))
    cells = [cell.id for cell in plan_ppl(perplexity).cells]
    first = carry_out(asked, store)
    assert carry_out(asked, store).computed == 0
    ends = list(range(300))  # whatever comes first
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    second = carry_out(asked, store)
    assert (second.computed, second.reused) == (1, 1)
    before, after = (next(one for one in result.records if one.metric == "exact_match") for result in (first, second))
    assert (before.params["end_tokens"], after.params["end_tokens"]) == ([0], ends)
    assert [(sample.output, sample.finish) for sample in store.samples(after.cell)] == [("", "eos")] * 2
    assert all(sample.finish != "eos" for sample in store.samples(before.cell))
    assert [cell.id for cell in plan_ppl(perplexity).cells] == cells


@pytest.mark.parametrize("content", ['{"eos_token_id": [[1]]}', "{", '{"cache_implementation": "x"}'])
def test_generation_settings_that_cannot_be_read_are_refused(content, spec, answer_task, tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(LongEvalError, match=r"--model .*generation_config\.json"):
        plan_tasks(spec(answer_task, model=(str(folder),), lengths=(512,)))


def test_averages_of_a_folder_that_cannot_be_written(spec, files, choice_task, store, tokenizer, monkeypatch):
    write_group(files, "both", "which_word")
    asked = {"lengths": (512,), "include": (str(files),)}
    carry_out(spec("which_word", **asked), store, prefers_report(tokenizer))
    cells = files.parent / "run" / "cells"
    before = sorted(cells.iterdir())
    monkeypatch.setattr("longeval.store.files.why_unwritable", lambda folder: "Read-only file system")
    store.check_usable()
    result = carry_out(spec("both", **asked), store)
    assert [(record.task, record.value) for record in result.records] == [("which_word", 0.5), ("both", 0.5)]
    assert sorted(cells.iterdir()) == before


def test_generated_answers_stop_and_are_kept(spec, answer_task, store, tokenizer):
    (record,) = carry_out(spec(answer_task, lengths=(512,), limit=6), store, prefers_report(tokenizer)).records
    assert (record.metric, record.value, record.n) == ("exact_match", 0.5, 6)
    assert record.params["max_new_tokens"] == 8 and record.params["decoding"] == "greedy"
    assert {(sample.output, sample.finish) for sample in store.samples(record.cell)} == {("report", "stop")}


def test_long_documents_are_cut_and_counted_the_question_never(spec, choice_task, store, tokenizer):
    backend = prefers_report(tokenizer)
    short, long = carry_out(spec(choice_task), store, backend).records
    assert (short.length, short.truncated, short.n) == (64, 8, 12), "two of three documents are longer"
    assert (long.length, long.truncated) == (512, 0)
    longest = max(len(request.context_T) + 1 for request in backend.asked)
    assert 300 < longest <= 512
    for request in backend.asked:
        assert re.search(r"the line (says|reads)$", tokenizer.decode(request.context_T))
    cut = [sample for sample in store.samples(short.cell) if sample.truncated]
    assert all(60 <= sample.tokens <= 64 and sample.cut_tokens > 0 for sample in cut)


def test_samples_may_be_skipped_alike_at_every_length(spec, choice_task, store, tokenizer):
    backend = prefers_report(tokenizer)
    plan = plan_tasks(spec(choice_task, overlong="skip"))
    assert any("--same-samples" in note for note in plan.notes)
    short, long = carry_out(spec(choice_task, overlong="skip"), store, backend).records
    assert (short.n, short.skipped, long.n, long.skipped) == (4, 8, 12, 0)
    short, long = carry_out(spec(choice_task, overlong="skip", same_samples=True), store, backend).records
    assert (short.n, short.skipped, long.n, long.skipped) == (4, 8, 4, 8)
    indices = [[sample.index for sample in store.samples(record.cell)] for record in (short, long)]
    assert indices[0] == indices[1] == [0, 3, 6, 9]


def test_where_nothing_fits_the_cell_is_skipped(spec, files, store, tokenizer):
    task = write_task(files, CHOICE, write_data(files, words=(60, 400)), "long_ones")
    asked = spec(task, lengths=(64, 512), overlong="skip")
    (note,) = plan_tasks(asked).notes  # and none that advises --same-samples: there are no such
    assert note.startswith("long_ones: nothing to compute at 64:")
    record, long = carry_out(asked, store, prefers_report(tokenizer)).records
    assert (record.status, record.value, record.skipped, long.status) == ("skipped", None, 8, "ok")
    needed = int(note.split(" needs ")[1].split()[0])
    assert needed == min(sample.tokens for sample in store.samples(long.cell))


def test_what_a_path_names_is_shown_by_name(spec, files, choice_task, store, tokenizer):
    group = write_group(files, "pair", "which_word")
    asked = spec(group, lengths=(512,), include=(str(files),), limit=2)
    task, average = carry_out(asked, store, prefers_report(tokenizer)).records
    assert (task.task, average.task, average.params["members"]) == ("which_word", "pair", ["which_word"])
    assert average.value == task.value
    with pytest.raises(LongEvalError, match="both are called which_word"):
        plan_tasks(spec(choice_task, "which_word", include=(str(files),)))


def test_what_is_prepared_is_told_sample_by_sample(spec, choice_task):
    told = []

    class Told(Silent):
        def preparing(self, what, done=0, total=0):
            told.append((what, done, total))

    plan_tasks(spec(choice_task, "passkey", lengths=(512,), limit=3), Told())
    stages = ("which_word at 512: reading prompts", "passkey at 512: making samples", "passkey at 512: reading prompts")
    for what in stages:
        assert [said for said in told if said[0] == what] == [(what, done, 3) for done in (1, 2, 3)]


def test_cells_know_what_decides_them(spec, choice_task):
    def cell(**changes):
        return plan_tasks(spec(choice_task, lengths=(512,), **changes)).cells[0].id

    ids = [cell(), *(cell(**change) for change in ({"limit": 11}, {"seed": 1}, {"pe": ("yarn",)}))]
    text = choice_task.read_text()
    for old, new in (("{{question}}", "{{question}} now"), ("metric: acc,", "metric: acc_norm,")):
        choice_task.write_text(text.replace(old, new))
        ids.append(cell())
    choice_task.write_text(text)
    assert len(set(ids)) == 6 and cell() == ids[0]


def test_cells_do_not_change_by_what_decides_nothing(spec, choice_task, monkeypatch):
    base = [cell.id for cell in plan_tasks(spec(choice_task)).cells]
    assert [cell.id for cell in plan_tasks(spec(choice_task, limit=12)).cells] == base
    fitting = plan_tasks(spec(choice_task, overlong="skip")).cells
    assert fitting[1].id == base[1] and fitting[0].id != base[0]
    alike = plan_tasks(spec(choice_task, overlong="skip", same_samples=True, lengths=(512,))).cells
    assert alike[0].id == base[1]
    monkeypatch.chdir(choice_task.parent)
    here, there = (plan_tasks(spec(name)).cells[0] for name in ("./which_word.yaml", "which_word.yaml"))
    assert here.id == there.id


def test_other_right_answers_are_other_cells(spec, files, store, tokenizer):
    data = write_data(files)
    asked = spec(write_task(files, CHOICE, data, "which_word"), lengths=(512,))
    (before,) = carry_out(asked, store, prefers_report(tokenizer)).records
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row | {"right": 0}) + "\n" for row in rows))
    (after,) = carry_out(asked, store, prefers_report(tokenizer)).records
    assert (before.value, after.value) == (0.5, 1.0)


def test_longer_answers_make_shorter_synthetic_prompts_and_nothing_is_cut(spec):
    for asked, room in ((None, 16), (200, 200), (3, 3)):
        plan = plan_tasks(spec("passkey", lengths=(1024,), limit=4, max_new_tokens=asked))
        (job,) = plan.jobs
        assert job.prepared.num_truncated == 0 and job.prepared.max_new_tokens == room
        assert all(0.99 * 1024 <= sample.tokens + room <= 1024 for sample in job.prepared.samples)
        assert all(sample.target in sample.instances[0].args[0] for sample in job.prepared.samples)


def test_prompts_are_the_same_on_any_day(tiny_llama, tmp_path, spec, tokenizer):
    template = "{{ strftime_now('%d %b %Y %H:%M:%S') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    folder = shutil.copytree(tiny_llama, tmp_path / "dated")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (job,) = plan_tasks(spec("passkey", model=(str(folder),), lengths=(1024,), limit=1)).jobs
    assert job.chat
    assert job.prepared.samples[0].instances[0].args[0].startswith("01 Jan 2025 00:00:00")


def test_methods_are_served_and_proved(spec, choice_task, store, tokenizer):
    backend = prefers_report(tokenizer)
    asked = spec(choice_task, pe=("none", "yarn", "dynamic_ntk"), lengths=(256,))
    digests = [record.rope_digest for record in carry_out(asked, store, backend).records]
    tables = [cell.setup.table(256) for cell in plan_tasks(asked).cells]
    assert digests == [table_digest(table.cos_sin(np.arange(256, dtype=np.int64))) for table in tables]
    assert len(set(digests)) == 3
    lengths = {length for table, length in backend.served}
    assert len(lengths) > 3, "a length-dependent method gets the table of each request's own length"


def test_the_average_of_a_group_follows_its_members(spec, files, store, tokenizer):
    write_task(files, CHOICE, write_data(files), "one_task")
    (files / "few").mkdir()
    write_task(files, CHOICE, write_data(files / "few", questions=1), "other_task")
    write_group(files, "both_tasks", "one_task, other_task")
    asked = spec("both_tasks", include=(str(files),), lengths=(512,))
    one, other, whole = carry_out(asked, store, prefers_report(tokenizer)).records
    assert (one.task, one.value, other.task, other.value) == ("one_task", 0.5, "other_task", 1.0)
    assert (whole.task, whole.metric, whole.value) == ("both_tasks", "accuracy", pytest.approx((6 + 3) / 15))
    assert whole.params["members"] == ["one_task", "other_task"]
    expected = math.hypot(12 / 15 * one.params["stderr"], 3 / 15 * other.params["stderr"])
    assert whole.params["stderr"] == pytest.approx(expected)
    assert store.load(whole.cell).records == (whole,)


def test_a_real_tiny_model_scores_as_lm_evals_own_model_does(spec, choice_task, store, tiny_llama, tokenizer):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM

    (record,) = carry_out(spec(choice_task, lengths=(512,)), store).records
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with quiet():
        theirs = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=512),
            tasks=["which_word"],
            task_manager=TaskManager(include_path=str(choice_task.parent), include_defaults=False),
            bootstrap_iters=0,
        )
    assert record.value == theirs["results"]["which_word"]["acc,none"]
    ours = {sample.index: sample for sample in store.samples(record.cell)}
    for sample in theirs["samples"]["which_word"]:
        expected = [response[0][0] for response in sample["resps"]]
        assert [choice[0] for choice in ours[sample["doc_id"]].output] == pytest.approx(expected, abs=1e-4)


def test_lm_evals_generators_get_our_tokenizer_whatever_a_file_names(files, spec, monkeypatch):
    """They load it with its code: a tokenizer that a task's file names would run."""
    import lm_eval.tasks

    theirs = Path(lm_eval.tasks.__file__).parent / "babilong" / "babilong_qa1.yaml"
    path = files / "mine.yaml"
    path.write_text(f"include: {theirs}\ntask: mine\nmetadata: {{version: 1, synthetic: true, tokenizer: {files}}}\n")
    given = []

    def load_task(leaf, *, metadata, **rest):
        given.append(metadata["tokenizer"])
        raise LongEvalError("enough")

    monkeypatch.setattr("longeval.studies.tasks.plan.load_task", load_task)
    with pytest.raises(LongEvalError, match="enough"):
        plan_tasks(spec(path))
    assert Path(given[0]).is_dir() and Path(given[0]) != files
