"""A model's answers to a prepared task, and the task's own score of each.

lm-eval's filters, `process_results` and aggregations do the scoring, in the way of its `evaluate` (0.4.13). A metric
that is a mean has a value for every sample, which standard errors, paired comparisons and heat maps need. Any other
(perplexity, F1 and BLEU over a whole corpus) has one for all samples together, by the task's own aggregation.

lm-eval's own models cut a request that is longer than they can take from the left, and say so in a log line: the
instructions, or the needle, are gone and the score looks like any other. Here such a request is an error; what becomes
of long documents is decided before, in `prompts.overlong`.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from longeval.backends.base import Backend, ChoicesRequest, GenerateRequest, Generation
from longeval.errors import LongEvalError
from longeval.rope.base import RopeTable
from longeval.store.samples import Sample
from longeval.studies.tasks.definitions.checks import NO_SCORE
from longeval.studies.tasks.definitions.guards import quiet, seeded
from longeval.studies.tasks.prompts.requests import PreparedSample, PreparedTask, Request, Result, reach, response

RESAMPLES = 200
"""Draws of a bootstrap; lm-eval's own default of 100,000 takes minutes and changes nothing in two digits."""

_PLACEHOLDER = -1.0
"""What lm-eval's RULER tasks give for lengths that a sample doesn't have (tasks/ruler/common_utils.py)."""

_PROBES = ((0.0, 1.0, 1.0, 0.0, 1.0), (0.25, 0.5, 0.875, 0.125))
"""Numbers on which an aggregation is tried: only a mean gives their means."""

Values = dict[tuple[str, str], list[tuple[int, Any]]]
"""(lm-eval's metric, filter) → (number of a sample, its value), in the order of samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMetric:
    """A metric of a task, as the task itself defines it."""

    name: str
    """As records have it."""
    filter: str
    """Name of the filter that answers went through; `none` where the task has none of its own."""
    higher_is_better: bool | None
    """None where the task doesn't say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """A value for all samples together."""

    value: float
    stderr: float | None
    """By bootstrap over samples; None where lm-eval has none."""
    n: int
    """Samples that it is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """A model's answers to a task under one method, with their scores."""

    samples: tuple[Sample, ...]
    """In the order of the prepared ones."""
    aggregates: Mapping[str, Aggregate]
    """Metric → its value, for metrics that aren't means over samples."""
    metrics: tuple[TaskMetric, ...]
    """All metrics, those of the aggregates too, in the order of the task."""


def answer(
    task: Any,
    prepared: PreparedTask,
    lm: TaskLM | None,
    on_sample: Callable[[int], None] | None = None,
    *,
    known: Mapping[int, Sample] = MappingProxyType({}),
) -> Answers:
    """Has a model answer a task.

    Args:
        task: The lm-eval `Task` that was prepared; it is left as it was.
        prepared: Its samples; they are left as they were too, and can be answered again.
        lm: The model under its method, at the window that the task was prepared for; None where all is known.
        on_sample: Called with a sample's place in `prepared.samples` once it is answered; in any order.
        known: Place of a sample → the same prompt's answer as it was stored; it isn't asked again, only scored.

    Raises:
        TooLongError: A request doesn't fit into the window of `lm`.
        OutOfMemoryError: A request is too long for the device.
        ValueError: A score is no finite number; names the metric and the sample.
    """
    if not prepared.samples:
        return Answers(samples=(), aggregates={}, metrics=())
    given = _run(prepared, lm, on_sample, known)
    instances = [_answered(sample, one.responses) for sample, one in zip(prepared.samples, given, strict=True)]
    with quiet(), seeded(0):
        flat = [instance for group in instances for instance in group]
        for ensemble in getattr(task, "_filters", ()):
            ensemble.apply(flat)
        values = _processed(task, prepared, instances)
    scores, aggregates, metrics = _scores(task, prepared, values)
    samples = tuple(_sample(*parts) for parts in zip(prepared.samples, given, scores, strict=True))
    return Answers(samples=samples, aggregates=aggregates, metrics=metrics)


class _Answered(NamedTuple):
    """What the model gave for a sample."""

    responses: list[Any]
    """For each instance, as lm-eval expects it (`response`)."""
    finish: str | None
    """What ended a generated answer."""


def _run(
    prepared: PreparedTask, lm: TaskLM | None, on_sample: Callable[[int], None] | None, known: Mapping[int, Sample]
) -> list[_Answered]:
    """What the model gives for each sample, asked now unless it is known."""
    asked = [number for number in range(len(prepared.samples)) if number not in known]
    requests = [(number, place) for number in asked for place in range(len(prepared.samples[number].requests))]
    found: dict[int, dict[int, Result]] = {number: {} for number in asked}
    if asked:
        assert lm is not None
        for index, result in lm.run([prepared.samples[number].requests[place] for number, place in requests]):
            number, place = requests[index]
            found[number][place] = result
            if on_sample is not None and len(found[number]) == len(prepared.samples[number].requests):
                on_sample(number)
    return [
        _stored(known[number]) if number in known else _now(sample, found[number])
        for number, sample in enumerate(prepared.samples)
    ]


def _now(sample: PreparedSample, results: Mapping[int, Result]) -> _Answered:
    """The model's results for the requests of a sample."""
    in_order = [results[place] for place in range(len(sample.requests))]
    finish = next((result.finish for result in in_order if isinstance(result, Generation)), None)
    pairs = zip(sample.instances, sample.places, strict=True)
    return _Answered([response(instance, places, in_order) for instance, places in pairs], finish)


def _stored(sample: Sample) -> _Answered:
    """What the model gave for an equal sample, as it was stored: the inverse of `_output`."""
    responses: list[Any] = []
    for one in [sample.output] if isinstance(sample.output, str) else sample.output:
        if isinstance(one, str):
            responses.append(one)
            continue
        likelihood, *greedy = one
        likelihood = -math.inf if likelihood is None else float(likelihood)
        responses.append((likelihood, *greedy) if greedy else likelihood)
    return _Answered(responses, sample.finish)


def _answered(sample: PreparedSample, responses: Sequence[Any]) -> list[Any]:
    """Instances of lm-eval with their responses: copies, so that nothing is left in the prepared ones."""
    return [
        dataclasses.replace(
            instance,
            doc=sample.doc,
            # Greedy answers don't differ: one stands for all that the task asks for.
            resps=[given] * (instance.repeats or 1),
            filtered_resps={},
        )
        for instance, given in zip(sample.instances, responses, strict=True)
    ]


def _processed(task: Any, prepared: PreparedTask, instances: Sequence[Sequence[Any]]) -> Values:
    """Values of the task's `process_results`."""
    found: Values = {}
    for filter_name in instances[0][0].filtered_resps:
        for number, (sample, group) in enumerate(zip(prepared.samples, instances, strict=True)):
            doc = copy.deepcopy(sample.doc)  # some tasks change it
            values = task.process_results(doc, [instance.filtered_resps[filter_name] for instance in group])
            for metric, value in values.items():
                found.setdefault((str(metric), filter_name), []).append((number, value))
    return found


def _scores(
    task: Any, prepared: PreparedTask, found: Values
) -> tuple[list[dict[str, float]], dict[str, Aggregate], tuple[TaskMetric, ...]]:
    """Values by sample of metrics that are means, aggregates of the others, and the names of both."""
    aggregations, directions = task.aggregation(), task.higher_is_better()
    only_filter = len({filter_name for _, filter_name in found}) == 1
    scores: list[dict[str, float]] = [{} for _ in prepared.samples]
    aggregates: dict[str, Aggregate] = {}
    metrics: dict[str, TaskMetric] = {}
    for (lm_eval_name, filter_name), values in found.items():
        aggregation = aggregations.get(lm_eval_name)
        name = metric_name(lm_eval_name, filter_name, only_filter=only_filter)
        if is_mean(aggregation):
            values = [(number, value) for number, value in values if not absent(lm_eval_name, value, aggregation)]
            for number, value in values:
                if name in scores[number]:
                    raise ValueError(f"task {prepared.name}: sample {prepared.samples[number].index} has two {name}")
                scores[number][name] = _number(value, name, prepared.samples[number])
        elif lm_eval_name == NO_SCORE:
            continue
        else:
            try:
                aggregates[name] = aggregate(aggregation, [value for _, value in values])
            except ValueError as error:
                raise ValueError(f"task {prepared.name}: {name}: {error}") from error
        if values:
            direction = directions.get(lm_eval_name)
            higher = None if direction is None else bool(direction)
            metrics[name] = TaskMetric(name=name, filter=filter_name, higher_is_better=higher)
    return scores, aggregates, tuple(metrics.values())


def _number(value: Any, name: str, sample: PreparedSample) -> float:
    """A score as a plain float."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample {sample.index}: {name} is {value!r:.60}, no number") from error
    if not math.isfinite(number):
        raise ValueError(f"sample {sample.index}: {name} is {number}")
    return number


def _sample(sample: PreparedSample, given: _Answered, scores: dict[str, float]) -> Sample:
    return Sample(
        index=sample.index,
        prompt_digest=sample.prompt_digest,
        tokens=sample.tokens,
        truncated=sample.truncated,
        cut_tokens=sample.cut_tokens,
        target=sample.target,
        output=_output(sample, given.responses),
        scores=scores,
        cluster=sample.cluster,
        depth=sample.depth,
        finish=given.finish,
    )


def _output(sample: PreparedSample, responses: Sequence[Any]) -> Any:
    """Responses as plain JSON: the one text, or a list with an item for each choice; −∞ is null."""
    plain: list[Any] = []
    for found in responses:
        if isinstance(found, str):
            plain.append(found)
            continue
        likelihood, *rest = (found,) if isinstance(found, float) else found
        if math.isnan(likelihood):
            raise ValueError(f"sample {sample.index}: the model's log-likelihood is NaN")
        plain.append([likelihood if math.isfinite(likelihood) else None, *rest])
    return plain[0] if len(plain) == 1 and isinstance(plain[0], str) else plain


def is_length(name: str) -> bool:
    """Whether a metric is called after a context length, as in lm-eval's RULER tasks."""
    return name.isdecimal()


def metric_name(name: str, filter_name: str, *, only_filter: bool) -> str:
    """Name in records of lm-eval's metric `name` after filter `filter_name`.

    `acc` is `accuracy`, lengths (RULER) are `recall`, words are in snake case; a filter's name is put behind unless it
    is `none` or the only one.
    """
    plain = "recall" if is_length(name) else re.sub(r"^acc(?=_|$)", "accuracy", _snake(name))
    return plain if only_filter or filter_name == "none" else f"{plain}_{_snake(filter_name)}"


def is_mean(aggregation: Callable[[Sequence[float]], float] | None) -> bool:
    """Whether an aggregation of lm-eval's is the plain mean of its values; a task without one has lm-eval's mean.

    nanmean is one: samples without a value are left out. Functions of a task's own are tried on a few numbers.
    """
    from lm_eval.api import metrics

    if aggregation in (None, metrics.mean, metrics.nanmean):
        return True
    assert aggregation is not None
    try:
        with quiet():
            return all(math.isclose(float(aggregation(list(probe))), statistics.fmean(probe)) for probe in _PROBES)
    except Exception:  # it wants something else than numbers, and may say so in any way
        return False


def absent(name: str, value: Any, aggregation: Callable[[Sequence[float]], float] | None) -> bool:
    """Whether a sample's `value` says that it has none: RULER's other lengths, NaN where the task's mean skips it."""
    from lm_eval.api import metrics

    if is_length(name):
        return bool(value == _PLACEHOLDER)
    return aggregation is metrics.nanmean and bool(math.isnan(value))


def aggregate(aggregation: Callable[[Sequence[Any]], float], values: Sequence[Any]) -> Aggregate:
    """A task's own aggregation, with its standard error where lm-eval has one for it, or for weighted perplexities.

    Raises:
        ValueError: The value is no finite number.
    """
    items = list(values)
    with quiet():
        try:
            value = float(aggregation(items))
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise ValueError(f"its value over {len(items)} samples is {value}")
        return Aggregate(value=value, stderr=_stderr(aggregation, items), n=len(items))


def _stderr(aggregation: Callable[[Sequence[Any]], float], items: list[Any]) -> float | None:
    """Standard deviation of the aggregation over resamples, drawn as lm-eval draws its first; None without any."""
    from lm_eval.api import metrics

    if len(items) < 2:
        return None
    if aggregation is metrics.acc_all:
        return float(metrics.acc_all_stderr(items))
    weighted = (metrics.weighted_perplexity, metrics.bits_per_byte)
    if aggregation not in weighted and metrics.stderr_for_metric(aggregation, RESAMPLES) is None:
        return None
    # lm-eval's own bootstrap_stderr starts a process for each core, prints, and draws bars.
    slow = aggregation in (metrics.bleu, metrics.chrf, metrics.chrfpp, metrics.ter)
    draws = random.Random(0)  # noqa: S311  # no secret
    try:
        values = [aggregation(draws.choices(items, k=len(items))) for _ in range(RESAMPLES // 2 if slow else RESAMPLES)]
    except (ArithmeticError, ValueError):  # of a resample without some class, or with nothing but the worst sample
        return None
    spread = statistics.stdev(map(float, values))
    return spread if math.isfinite(spread) else None


def _snake(name: str) -> str:
    return re.sub(r"[-\s]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


class TooLongError(LongEvalError):
    """A request doesn't fit into the window."""

    def __init__(self, tokens: int, length: int) -> None:
        super().__init__(
            f"a request of {tokens} tokens doesn't fit into the window of {length}",
            "Nothing is cut silently: give a longer window, or cut the document (--overlong).",
        )


class _Part(NamedTuple):
    """Requests that are run under one table."""

    table: RopeTable
    length: int
    """The longest of them, tokens."""
    indices: list[int]


@dataclass(frozen=True, slots=True)
class TaskLM:
    """A model under one method at one window length."""

    backend: Backend
    tokenizer: Any
    """transformers' tokenizer of the model."""
    length: int
    """Window length in tokens: prompt and longest choice, or prompt and answer, at most."""
    table: Callable[[int], RopeTable]
    """Length → RoPE table."""
    static: bool
    """Whether the table doesn't depend on the length; it is then served once, for the window. Otherwise every request
    gets the table of its own length: what it takes in and may give out."""

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, Result]]:
        """Yields (index of a request, its result) as they are done, in any order.

        Raises:
            TooLongError: A request doesn't fit into the window; nothing has been run then.
            OutOfMemoryError: See `Backend`.
        """
        for request in requests:
            if reach(request) > self.length:
                raise TooLongError(reach(request), self.length)
        for part in self._parts(requests):
            self.backend.serve(part.table, part.length)
            chosen = [(i, request) for i in part.indices if isinstance(request := requests[i], ChoicesRequest)]
            asked = [(i, request) for i in part.indices if isinstance(request := requests[i], GenerateRequest)]
            if chosen:
                for place, scores in self.backend.choices([request for _, request in chosen]):
                    yield chosen[place][0], scores
            if asked:
                for place, answer in self.backend.generate([request for _, request in asked], self.tokenizer):
                    yield asked[place][0], answer

    def _parts(self, requests: Sequence[Request]) -> list[_Part]:
        """Groups requests by equal tables; the group with the longest request comes first."""
        if not requests:
            return []
        if self.static:
            return [_Part(self.table(self.length), self.length, list(range(len(requests))))]
        by_reach: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            by_reach.setdefault(reach(request), []).append(index)
        parts: list[_Part] = []
        for length in sorted(by_reach, reverse=True):
            table = self.table(length)
            if parts and parts[-1].table.same_as(table):
                parts[-1].indices.extend(by_reach[length])
            else:
                parts.append(_Part(table, length, by_reach[length]))
        return parts
