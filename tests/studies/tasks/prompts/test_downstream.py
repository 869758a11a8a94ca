"""Against lm-eval's own HFLM under its `simple_evaluate`, on its stock tasks; then scores whose values are known."""

from __future__ import annotations

import json
import logging
import math
import random
import warnings

import pytest
from local_tasks import answering, answering_row, arc_easy, gsm8k, lambada, reading, reading_row, wikitext
from plain_backend import KnownBackend, PlainBackend

from longeval.store.samples import samples_from_jsonl, samples_to_jsonl
from longeval.studies.tasks.answers import answer
from longeval.studies.tasks.prompts.build import prepare

STOCK = {
    "arc_easy": (arc_easy, {"acc": "accuracy", "acc_norm": "accuracy_norm"}),
    "gsm8k": (gsm8k, {"exact_match": "exact_match"}),
    "lambada_openai": (lambada, {"perplexity": "perplexity", "acc": "accuracy"}),
    "wikitext": (wikitext, {name: name for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")}),
}


def evaluated(lm, task, chat, **options):
    """lm-eval's own results of a task."""
    from unittest import mock

    from lm_eval import evaluator, simple_evaluate
    from lm_eval.tasks import TaskManager

    from longeval.studies.tasks.definitions.guards import quiet

    slow = mock.patch.multiple(evaluator, add_env_info=lambda results: None, get_git_commit_hash=lambda: None)
    with quiet(), slow:  # what it collects about the machine takes seconds
        return simple_evaluate(
            lm,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            apply_chat_template=chat,
            bootstrap_iters=200,
            **options,
        )


def hflm(model, tokenizer, max_length, **options):
    from lm_eval.models.huggingface import HFLM

    from longeval.studies.tasks.definitions.guards import quiet

    with quiet():
        return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, max_length=max_length, **options)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", STOCK)
def test_stock_tasks_give_what_hflm_gives(
    name, chat, bos, window, lm, tiny_model, tiny_tokenizer, tiny_tokenizer_bos, monkeypatch
):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    make, names = STOCK[name]
    tokenizer = tiny_tokenizer_bos if bos else tiny_tokenizer
    here = window(tokenizer=tokenizer, bos=bos, chat=chat, length=128 if name == "wikitext" else 1024)
    task = make()
    asked = tiny_tokenizer if name == "wikitext" else tokenizer  # lm-eval would score a BOS behind the BOS
    max_length = here.length - (name == "wikitext")  # lm-eval doesn't count the last token of a rolling window
    theirs = evaluated(hflm(tiny_model, asked, max_length), task, chat)
    prepared = prepare(task, here, limit=None)
    ours = answer(task, prepared, lm(PlainBackend(tiny_model), here))
    filters = sorted({sample["filter"] for sample in theirs["samples"][name]})
    for filter_name in filters:
        suffix = "" if len(filters) == 1 else f"_{filter_name.replace('-', '_')}"
        for theirs_metric, metric in names.items():
            value = theirs["results"][name][f"{theirs_metric},{filter_name}"]
            if metric + suffix in ours.aggregates:
                assert ours.aggregates[metric + suffix].value == pytest.approx(value, rel=1e-5)
            else:
                values = [sample.scores[metric + suffix] for sample in ours.samples]
                assert sum(values) / len(values) == pytest.approx(value, abs=1e-12)
        own = [sample for sample in theirs["samples"][name] if sample["filter"] == filter_name]
        for mine, other in zip(ours.samples, sorted(own, key=lambda sample: sample["doc_id"]), strict=True):
            found = [resps[0] for resps in other["resps"]]
            if name == "gsm8k":
                expected = found[0]
            elif name == "wikitext":
                expected = [[pytest.approx(found[0], rel=1e-5)]]
            else:
                expected = [[pytest.approx(value, rel=1e-5), greedy] for value, greedy in found]
            assert (mine.index, mine.output) == (other["doc_id"], expected)


def test_the_main_metric_comes_first_and_knows_its_direction(answered):
    metrics = answered(arc_easy(), limit=3).metrics
    assert [metric.name for metric in metrics] == ["accuracy", "accuracy_norm"]
    assert all(metric.higher_is_better and metric.filter == "none" for metric in metrics)


def test_scores_go_to_their_own_samples(window, lm, tiny_tokenizer):
    """The backend answers in reverse order, and knows the right choice of odd samples only."""
    task = reading(rows=[reading_row(seed, words=20 + seed, gold=2) for seed in range(5)])
    prepared = prepare(task, window(), limit=None)
    odd = {tuple(sample.requests[0].context_T.tolist()) for sample in prepared.samples if sample.index % 2}
    right = tiny_tokenizer.encode(" the report", add_special_tokens=False)

    def score(context, continuation):
        return -1.0 if (continuation == right) == (tuple(context) in odd) else -2.0

    done = []
    answers = answer(task, prepared, lm(KnownBackend(score), window()), done.append)
    assert [sample.scores for sample in answers.samples] == [{"accuracy": float(index % 2)} for index in range(5)]
    assert [sample.target for sample in answers.samples] == ["the report"] * 5
    assert done == [4, 3, 2, 1, 0]
    assert answers.samples[1].output == [[-2.0, False], [-2.0, False], [-1.0, False]]


def test_samples_are_plain_json(answered):
    rows = [answering_row(seed, where=seed / 4, source=f"doc {seed // 2}") for seed in range(4)]
    task = answering(rows, metadata={"cluster": "source", "depth": "where"})
    samples = answered(task, KnownBackend(text=lambda prompt: "a2")).samples
    assert samples_from_jsonl(samples_to_jsonl(samples).encode()) == samples
    third = samples[2]
    assert (third.index, third.target, third.output, third.finish) == (2, "a2", "a2", "stop")
    assert (third.truncated, third.cut_tokens, third.cluster, third.depth) == (False, 0, "doc 1", 0.5)
    assert [sample.scores for sample in samples] == [{"exact_match": value} for value in (0.0, 0.0, 1.0, 0.0)]
    assert all(type(value) is float for sample in samples for value in sample.scores.values())


def test_a_task_is_prepared_once_and_answered_by_every_method(window, lm):
    rows = [answering_row(seed) for seed in range(3)]
    task = answering(rows, process_results=lambda doc, results: {"exact_match": results[0] == doc.pop("answer")})
    prepared = prepare(task, window(), limit=None)
    before = prepared.digest
    for text, right in (("a0", [1.0, 0.0, 0.0]), ("a1", [0.0, 1.0, 0.0]), ("a0", [1.0, 0.0, 0.0])):
        answers = answer(task, prepared, lm(KnownBackend(text=lambda prompt, text=text: text), window()))
        assert [sample.scores["exact_match"] for sample in answers.samples] == right
    assert prepared.digest == before
    assert all(instance.resps == [] for sample in prepared.samples for instance in sample.instances)


def test_filters_see_the_uncut_sample(window, lm, monkeypatch):
    task = answering([answering_row(0, words=200)])
    seen = []
    apply = type(task._filters[0]).apply
    monkeypatch.setattr(
        type(task._filters[0]), "apply", lambda own, instances: (seen.extend(instances), apply(own, instances))
    )
    prepared = prepare(task, window(length=150), limit=None)
    assert prepared.samples[0].truncated and len(prepared.samples[0].instances[0].doc["document"]) < 600
    answer(task, prepared, lm(KnownBackend(), window()))
    assert seen[0].doc["document"] == task.eval_docs[0]["document"]


def test_one_answer_stands_for_all_repeats(window, lm):
    steps = [{"function": "take_first_k", "k": 5}, {"function": "majority_vote"}, {"function": "take_first"}]
    vote = [{"name": "vote", "filter": steps}]
    task = answering([answering_row(0)], repeats=5, filter_list=vote)
    backend = KnownBackend(text=lambda prompt: "a0")
    prepared = prepare(task, window(), limit=None)
    assert answer(task, prepared, lm(backend, window())).samples[0].scores == {"exact_match": 1.0}
    assert [len(requests) for requests in backend.asked] == [1]
    assert prepared.notes == ("answering asks each question 5 times; greedy answers are equal, so it is asked once",)


def test_lengths_as_metrics_become_recall(answered):
    """As lm-eval's RULER tasks do it: the value under the sample's own length, −1 under 4096 and others."""
    from lm_eval.tasks.ruler import common_utils as ruler

    metrics = [
        {"metric": name, "aggregation": ruler.aggregate_metrics, "higher_is_better": True} for name in ("4096", "8192")
    ]
    rows = [
        {"input": make, "gen_prefix": "It is", "outputs": ["17", "23"], "max_length": 8192}
        for make in ("seek the numbers", "seek them again")
    ]
    task = answering(
        rows,
        doc_to_text="{{input}}",
        doc_to_target="{{outputs}}",
        gen_prefix="{{gen_prefix}}",
        process_results=ruler.process_results,
        metric_list=metrics,
    )
    answers = answered(task, KnownBackend(text=lambda prompt: "17."))
    assert [sample.scores for sample in answers.samples] == [{"recall": 0.5}, {"recall": 0.5}]
    assert [metric.name for metric in answers.metrics] == ["recall"]
    assert answers.aggregates == {}


def test_corpus_metrics_are_aggregated_by_the_task(window, lm, monkeypatch):
    """F1 of the predictions 0 1 1 0 for 0 1 0 1: precision 1/2, recall 1/2."""
    rows = [
        reading_row(seed, words=5 + seed, gold=gold, choices=["no", "yes"]) for seed, gold in enumerate((0, 1, 0, 1))
    ]
    monkeypatch.setattr("longeval.studies.tasks.answers.RESAMPLES", 30)
    f1 = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    task = reading(rows=rows, metric_list=f1)
    prepared = prepare(task, window(), limit=None)
    yes = {tuple(prepared.samples[index].requests[0].context_T.tolist()) for index in (1, 2)}
    no_T = prepared.samples[0].requests[0].continuations[0].tolist()

    def score(context, continuation):
        return -1.0 if (continuation == no_T) != (tuple(context) in yes) else -2.0

    answers = answer(task, prepared, lm(KnownBackend(score), window()))
    found = answers.aggregates["f1"]
    assert (found.value, found.n) == (pytest.approx(0.5), 4) and found.stderr is not None
    assert [sample.scores for sample in answers.samples] == [{}] * 4


def score_with_nan(doc, results):
    return {"exact_match": math.nan if doc["answer"] == "a1" else 1.0}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            lambda: answering(list(map(answering_row, range(3))), process_results=score_with_nan),
            "sample 1: exact_match",
        ),
        (reading, "sample 0: .*NaN"),
    ],
)
def test_a_score_that_is_no_number_names_the_sample(task, message, answered):
    with pytest.raises(ValueError, match=message):
        answered(task(), KnownBackend(lambda *_: math.nan))


def test_an_impossible_choice_is_null_in_the_output(answered):
    backend = KnownBackend(lambda context, continuation: -math.inf if len(continuation) > 3 else -1.0)
    samples = answered(reading(), backend, limit=1).samples
    assert [None, False] in samples[0].output
    json.loads(samples_to_jsonl(samples))


def test_chance_in_scoring_is_the_same_each_time(answered):
    task = answering([answering_row(0)], process_results=lambda doc, results: {"exact_match": random.random()})
    random.seed(7)
    first = answered(task).samples[0].scores
    after = random.random()
    assert answered(task).samples[0].scores == first
    random.seed(7)
    assert random.random() == after, "the caller's own draws go on"


def test_nothing_reaches_the_terminal(answered, capfd, caplog):
    def process(doc, results):
        print("task code talks")  # noqa: T201  # as code of tasks does
        logging.getLogger("lm_eval.tasks").warning("and logs")
        warnings.warn("and warns", stacklevel=1)
        return {"exact_match": 1.0}

    task = answering([answering_row(0)], process_results=process)
    capfd.readouterr()
    caplog.clear()
    answered(task)
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""
