"""What a reader must know beside a task's scores: those that guessing explains, few samples, cut and left-out ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from longeval.report.document import Bullets, Prose, joined, prose
from longeval.report.facts import codes, method_facts, model_fact, unique
from longeval.report.numbers import count_range, counted, format_score
from longeval.report.settings import code_of
from longeval.report.tables import GridRow, outcome_lines, places_text, row_name
from longeval.stats.bootstrap import MIN_UNITS
from longeval.store.records import Record
from longeval.studies.tasks.report.figures import MAX_LEVELS
from longeval.studies.tasks.report.tables import FEW_SAMPLES, CountField, TaskSet, TaskTable
from longeval.values import format_length

CHANCE_MARK = "†"
"""Stands behind a score whose interval contains that of guessing."""


def is_chance(table: TaskTable, record: Record | None) -> bool:
    """Whether a score can't be told from guessing: its 95% interval contains the score of guessing, or it has none.

    Without an interval only a score above a guess that is never right (chance 0) is more than guessing.
    """
    chance = table.chance
    if chance is None or record is None or record.value is None:
        return False
    if record.ci_low is None or record.ci_high is None:
        return chance > 0 or record.value <= chance
    return record.ci_low <= chance <= record.ci_high


def table_notes(table: TaskTable) -> list[str]:
    """Plain-text lines under one table: reasons of missing values, chance, few, cut, left-out and unequal samples."""
    notes = outcome_lines(table.rows, table.lengths)
    if table.members is not None:
        return notes
    chance = table.chance
    if chance is not None:
        near = places_text(table.rows, [r for r in table.records if is_chance(table, r)])
        if near:
            notes.append(
                f"{CHANCE_MARK} not distinguishable from guessing, which scores {format_score(chance)}: {near}"
            )
        below = places_text(table.rows, [r for r in table.records if r.ci_high is not None and r.ci_high < chance])
        if below:
            notes.append(f"below guessing, which scores {format_score(chance)}: {below}")
    notes += [*_mixed_notes(table), *_sample_notes(table)]
    no_interval = [r for r in table.records if r.value is not None and r.ci_low is None]
    if no_interval:
        why = f"fewer than {MIN_UNITS} independent samples or documents, or not a mean over samples"
        notes.append(f"no interval ({why}): {places_text(table.rows, no_interval)}")
    return notes


def same_samples(table: TaskTable) -> bool:
    """Whether all methods got the same prompts at every length, as far as records tell."""
    return all(len(found) == 1 and None not in found for length in table.lengths if (found := _versions(table, length)))


def _mixed_notes(table: TaskTable) -> list[str]:
    """Lengths at which cells of several versions stand beside each other, since some have no newer one."""
    parts: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for length in table.lengths:
        by_version = _versions(table, length)
        if len(by_version) > 1 and None not in by_version:
            named = ((", ".join(row_name(row, table.rows) for row in rows), code) for rows, code in by_version.values())
            parts.setdefault(tuple(named), []).append(format_length(length))
    return [
        f"not the same prompts, or not scored by the same rules, at {', '.join(lengths)}, so rows are not comparable "
        f"there: {'; '.join(f'{names} ({code})' for names, code in named)}"
        for named, lengths in parts.items()
    ]


def _versions(table: TaskTable, length: int) -> dict[tuple[str, str] | None, tuple[list[GridRow], str]]:
    """Prompts and definition of the task at a length → rows that have them, and what computed these."""
    found: dict[tuple[str, str] | None, tuple[list[GridRow], str]] = {}
    for row in table.rows:
        if (record := row.cells.get(length)) is not None:
            prompts, rules = (record.params.get(name) for name in ("prompts", "task_digest"))
            key = None if prompts is None else (prompts, str(rules))
            found.setdefault(key, ([], code_of(record)))[0].append(row)
    return found


def _sample_notes(table: TaskTable) -> list[str]:
    notes = []
    samples = {length: found for length in table.lengths if (found := table.counts("n", length))}
    every = [count for found in samples.values() for count in found]
    if min(every, default=FEW_SAMPLES) < FEW_SAMPLES:
        notes.append(f"few samples ({min(every)}): only large differences could show")
    if len(set(every)) > 1:
        each = ", ".join(f"{count_range(found)} at {format_length(length)}" for length, found in samples.items())
        notes.append(f"not the same number of samples everywhere ({each}): columns or rows are not fully comparable")
    if any(count for length in table.lengths for count in table.counts("truncated", length)):
        notes.append("a sample whose document was cut to fit may have lost what the answer rests on")
    documents = [count for length in table.lengths for count in table.counts("documents", length)]
    fewest = min(documents, default=MIN_UNITS)
    if fewest < MIN_UNITS and any(count > fewest for count in every):
        notes.append(f"few documents ({fewest}): even the standard errors are rough")
    return notes


def count_rows(table: TaskTable) -> list[tuple[str, list[str]]]:
    """Counts by length under a table: samples, and where there are any, shared documents, cut and left-out samples."""
    fields: dict[CountField, str] = {
        "n": "samples",
        "documents": "documents",
        "truncated": "cut to fit",
        "skipped": "left out",
    }
    rows = []
    for field, name in fields.items():
        counts = [table.counts(field, length) for length in table.lengths]
        if field == "n" or any(map(any, counts)):
            rows.append((name, [count_range(found) for found in counts]))
    return rows


# How the tasks were scored, in sentences: prompts, decoding, samples, metrics, intervals.

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


def scored_facts(tasks: TaskSet, *, has_depths: bool, has_pairs: bool) -> Bullets:
    """A list for one set of tasks; every sentence holds for all tasks or names those it holds for."""
    tables = tasks.tasks
    records = [record for table in tables for record in table.records]
    if not records:
        return Bullets(items=("Averages only: the cells of their tasks are not in these run folders.",))
    facts: list[Prose] = [model_fact(tasks.model, tasks.native_length, records[0])]
    facts += method_facts([row for table in tables for row in table.rows])
    facts += _prompt_facts(tables, records[0].params)
    facts += _sample_facts(tables, records[0].params)
    for metric in dict.fromkeys(table.metric for table in (*tables, *tasks.further)):
        meaning = METRICS.get(metric, "as the task defines it; of samples, their mean")
        facts.append(prose(f"`{{}}`: {meaning}.", metric))
    if has_depths:
        facts.append(
            f"Depth: where in the context the (first) needle lies, 0% is the start; more than {MAX_LEVELS} different "
            "depths are put into ten bins."
        )
    if tasks.groups:
        facts.append(
            "Averages: every task counts once, unless the group counts samples; one task without a value, and there "
            "is no average. They have no error of their own."
        )
    facts += _error_facts(records)
    if has_pairs:
        facts.append(
            "Intervals of paired differences: Bonett and Price (2012) for right-or-wrong samples that are independent, "
            "else percentile bootstrap of the differences, over samples or over the documents that they share."
        )
    return Bullets(items=tuple(facts))


def _prompt_facts(tables: Sequence[TaskTable], params: dict[str, Any]) -> Iterator[Prose]:
    own = [table.title for table in tables if any(record.params.get("own_prompts") is True for record in table.records)]
    if own:
        yield prose(
            "Prompts in longeval's own words, not those of the published benchmark: {}. Scores under another wording "
            "can differ.",
            codes(own),
        )
    template = params.get("chat_template")
    if template is not None:
        through = (
            "went through the tokenizer's chat template" if template else "were given as plain text, no chat template"
        )
        yield f"Chat template: {'on' if template else 'off'}; prompts {through}."
    if shots := _by_value(tables, "num_fewshot"):
        yield prose("Examples in front of the question: {}.", shots)
    if greedy := _by_value(tables, "max_new_tokens"):
        yield prose(
            "Answers are generated greedily (the most likely token each time, no sampling), at most so many new "
            "tokens, which count in the window: {}.",
            greedy,
        )
    chosen = [table.title for table in tables if all(_is_choice(record) for record in table.records)]
    if chosen:
        yield prose("Choices are scored by log-likelihood, nothing is generated: {}.", codes(chosen))


def _is_choice(record: Record) -> bool:
    return "max_new_tokens" in record.params and record.params["max_new_tokens"] is None


def _sample_facts(tables: Sequence[TaskTable], params: dict[str, Any]) -> Iterator[Prose]:
    if (policy := params.get("overlong")) is not None:
        cut = sum(record.truncated or 0 for table in tables for record in table.records)
        left_out = sum(record.skipped or 0 for table in tables for record in table.records)
        what = _OVERLONG.get(policy, "not described here")
        yield prose(
            f"A sample longer than the window (`--overlong {{}}`): {what}; instructions, question and choices are "
            f"never cut. Over all cells here {counted(cut, 'sample')} {'was' if cut == 1 else 'were'} cut and "
            f"{left_out:,} left out; the tables have the counts by length.",
            policy,
        )
    if limits := _by_value(tables, "limit", none="no limit"):
        same = "; a sample left out at one length is left out at all" if params.get("same_samples") else ""
        yield prose(f"Samples of each task (`--limit`): {{}}{same}. {{}}", limits, _same_samples(tables))
    if haystack := _by_value(tables, "haystack"):
        yield prose("Needles are hidden in: {}.", haystack)
    if versions := _by_value(tables, "task_version"):
        yield prose("Version of the task: {}. Seed {}.", versions, params.get("seed", "not recorded"))


def _same_samples(tables: Sequence[TaskTable]) -> Prose:
    """Whether methods were asked the same: claimed only where the digests of the prompts show it."""
    others = [table.title for table in tables if not same_samples(table)]
    text = "At each length all methods got the same samples with the same prompts"
    return prose(f"{text}, but not (or not as far as is recorded) in {{}}.", codes(others)) if others else f"{text}."


def _error_facts(records: Sequence[Record]) -> list[Prose]:
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
    facts: list[Prose] = [
        "Standard errors: of a mean over samples; clustered by document where samples share one (Miller 2024). They "
        "speak of other samples of this kind, not of other prompts or models."
    ]
    resamples = next(
        (f", {how['resamples']} resamples, seed {how.get('seed')}" for how in drawn if "resamples" in how),
        "",
    )
    facts.append(
        f"95% intervals: {'; '.join(said)}{resamples}." if said else "Intervals: none (too few independent samples)."
    )
    return facts


def _by_value(tables: Sequence[TaskTable], key: str, none: str | None = None) -> Prose:
    """`0`, or `64 (passkey, kv_retrieval), 512 (leval_quality)`; nothing where no task has it."""
    found: dict[str, list[str]] = {}
    for table in tables:
        for value in dict.fromkeys(str(r.params[key]) for r in table.records if r.params.get(key) is not None):
            found.setdefault(value, []).append(table.title)
        if none is not None and any(key in r.params and r.params[key] is None for r in table.records):
            found.setdefault(none, []).append(table.title)
    if len(found) == 1 and len(next(iter(found.values()))) == len(tables):
        return next(iter(found))
    return joined(", ", (prose("{} ({})", value, codes(unique(names))) for value, names in found.items()))
