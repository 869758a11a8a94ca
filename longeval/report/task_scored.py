"""Exactly what was scored in a set of tasks and how, in sentences: prompts, decoding, samples, metrics, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from longeval.report.depths import MAX_LEVELS
from longeval.report.gfm import code, escape_markdown
from longeval.report.numbers import counted
from longeval.report.provenance import method_lines, model_line
from longeval.report.task_notes import same_samples
from longeval.report.task_sections import TaskSection
from longeval.report.task_tables import TaskTable
from longeval.store.records import Record

METRICS = {
    "accuracy": "mean credit of a sample, 0 to 1, by the task's own rule of right and wrong",
    "accuracy_norm": "accuracy where the choice with the highest log-likelihood per character wins",
    "accuracy_bytes": "accuracy where the choice with the highest log-likelihood per byte wins",
    "recall": "mean share of the expected strings that the answer contains",
    "exact_match": "share of answers that equal the reference",
    "f1": "harmonic mean of precision and recall over the words of answer and reference",
    "rouge1": "ROUGE-1: overlap of single words with the reference",
    "rouge2": "ROUGE-2: overlap of word pairs with the reference",
    "rouge_l": "ROUGE-L: longest common subsequence of words with the reference",
}
"""What a metric's name means, where it means the same in every task."""

_OVERLONG = {
    "middle": "its document lost its middle (head and tail stay)",
    "left": "its document lost its beginning (the tail stays)",
    "right": "its document lost its end (the head stays)",
    "skip": "it was left out",
    "error": "nothing would have been computed",
}


def task_scored_lines(section: TaskSection) -> list[str]:
    """A bullet list for one set of tasks; every sentence holds for all tasks or names those it holds for."""
    tasks = section.tasks
    tables = tasks.tasks
    records = [record for table in tables for record in table.records]
    if not records:
        return ["- Averages only: the cells of their tasks are not in these run folders."]
    lines = [model_line(tasks.model, tasks.native_length, records[0])]
    lines += method_lines([row for table in tables for row in table.rows])
    lines += _prompt_lines(tables, records[0].params)
    lines += _sample_lines(tables, records[0].params)
    metrics = dict.fromkeys(table.metric for table in (*tables, *tasks.further))
    lines += [
        f"- {code(metric)}: {METRICS.get(metric, 'as the task defines it; of samples, their mean')}."
        for metric in metrics
    ]
    if section.maps:
        lines.append(
            f"- Depth: where in the context the (first) needle lies, 0% is the start; more than {MAX_LEVELS} different "
            "depths are put into ten bins."
        )
    if tasks.groups:
        lines.append(
            "- Averages: every task counts once, unless the group counts samples; one task without a value, and there "
            "is no average. They have no error of their own."
        )
    lines += _error_lines(records)
    if section.pairs:
        lines.append(
            "- Intervals of paired differences: Bonett & Price (2012) for right-or-wrong samples that are independent, "
            "else percentile bootstrap of the differences, over samples or over the documents that they share."
        )
    return lines


def _prompt_lines(tables: Sequence[TaskTable], params: dict[str, Any]) -> list[str]:
    lines = []
    own = _tasks_with(tables, "own_prompts", True)
    if own:
        lines.append(
            f"- Prompts in longeval's own words, not those of the published benchmark: {own}. Scores under another "
            "wording can differ."
        )
    template = params.get("chat_template")
    if template is not None:
        through = (
            "went through the tokenizer's chat template" if template else "were given as plain text, no chat template"
        )
        lines.append(f"- Chat template: {'on' if template else 'off'}; prompts {through}.")
    shots = _by_value(tables, "num_fewshot")
    if shots:
        lines.append(f"- Examples in front of the question: {shots}.")
    greedy = _by_value(tables, "max_new_tokens")
    if greedy:
        lines.append(
            f"- Answers are generated greedily (the most likely token each time, no sampling), at most so many new "
            f"tokens, which count in the window: {greedy}."
        )
    chosen = [code(t.title) for t in tables if all(_is_choice(r) for r in t.records)]
    if chosen:
        lines.append(f"- Choices are scored by log-likelihood, nothing is generated: {', '.join(chosen)}.")
    return lines


def _is_choice(record: Record) -> bool:
    return "max_new_tokens" in record.params and record.params["max_new_tokens"] is None


def _sample_lines(tables: Sequence[TaskTable], params: dict[str, Any]) -> list[str]:
    lines = []
    if (policy := params.get("overlong")) is not None:
        cut = sum(record.truncated or 0 for table in tables for record in table.records)
        left_out = sum(record.skipped or 0 for table in tables for record in table.records)
        what = _OVERLONG.get(policy, "not described here")
        lines.append(
            f"- A sample longer than the window ({code(f'--overlong {policy}')}): {what}; "
            f"instructions, question and choices are never cut. Over all cells here {counted(cut, 'sample')} "
            f"{'was' if cut == 1 else 'were'} cut and {left_out:,} left out; the tables have the counts by length."
        )
    if (limits := _by_value(tables, "limit", none="no limit")) is not None:
        same = "; a sample left out at one length is left out at all" if params.get("same_samples") else ""
        lines.append(f"- Samples of each task (`--limit`): {limits}{same}. {_same_samples(tables)}")
    if haystack := _by_value(tables, "haystack"):
        lines.append(f"- Needles are hidden in: {haystack}.")
    versions = _by_value(tables, "task_version")
    if versions:
        lines.append(f"- Version of the task: {versions}. Seed {escape_markdown(params.get('seed', 'not recorded'))}.")
    return lines


def _same_samples(tables: Sequence[TaskTable]) -> str:
    """Whether methods were asked the same: claimed only where the digests of the prompts show it."""
    others = ", ".join(code(table.title) for table in tables if not same_samples(table))
    text = "At each length all methods got the same samples with the same prompts"
    return f"{text}." if not others else f"{text}, but not (or not as far as is recorded) in {others}."


def _error_lines(records: Sequence[Record]) -> list[str]:
    drawn = [how for record in records if (how := record.params.get("ci"))]
    methods = {(how.get("method"), how.get("kind")) for how in drawn}
    said = []
    if ("wilson", "sample") in methods:
        said.append("Wilson's for right-or-wrong samples that are independent")
    if ("bootstrap", "sample") in methods:
        said.append("percentile bootstrap over samples where credit is graded")
    if ("bootstrap", "document") in methods:
        said.append("percentile bootstrap over whole documents where samples share them")
    if ("wilson", "document") in methods:
        said.append("Wilson's with documents as samples where all samples scored alike")
    lines = [
        "- Standard errors: of a mean over samples; clustered by document where samples share one (Miller 2024). They "
        "speak of other samples of this kind, not of other prompts or models."
    ]
    resamples = next(
        (f", {how['resamples']} resamples, seed {how.get('seed')}" for how in drawn if "resamples" in how),
        "",
    )
    lines.append(
        f"- 95% intervals: {'; '.join(said)}{escape_markdown(resamples)}."
        if said
        else "- Intervals: none (too few independent samples)."
    )
    return lines


def _by_value(tables: Sequence[TaskTable], key: str, none: str | None = None) -> str:
    """`0`, or `64 (passkey, kv_retrieval), 512 (leval_quality)`; nothing where no task has it."""
    found: dict[str, list[str]] = {}
    for table in tables:
        for value in dict.fromkeys(str(r.params[key]) for r in table.records if r.params.get(key) is not None):
            found.setdefault(value, []).append(table.title)
        if none is not None and any(key in r.params and r.params[key] is None for r in table.records):
            found.setdefault(none, []).append(table.title)
    if len(found) == 1 and len(next(iter(found.values()))) == len(tables):
        return escape_markdown(next(iter(found)))
    return ", ".join(
        f"{escape_markdown(value)} ({', '.join(code(name) for name in dict.fromkeys(names))})"
        for value, names in found.items()
    )


def _tasks_with(tables: Sequence[TaskTable], key: str, value: object) -> str:
    return ", ".join(code(t.title) for t in tables if any(record.params.get(key) == value for record in t.records))
