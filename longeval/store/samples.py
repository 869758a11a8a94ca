"""Samples of a downstream task, the artefact of a task cell: one line of JSON per sample.

Records hold means. Samples hold every answer, so that a score can be traced to its prompts, two methods can be
compared on the same samples, and figures by depth can be drawn without the model.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt

from longeval.plain import made_from, read_json
from longeval.store.artefact import ARTEFACTS, Artefact, check_count
from longeval.store.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample of a task with the answer of one model under one method."""

    index: NonNegativeInt
    """Index of the sample among all samples of the task, from 0. It is the same for every method and length."""
    prompt_digest: str
    """First 16 hex digits of the SHA-256 of all token ids that the model was given (prompt and choices)."""
    tokens: NonNegativeInt
    """Tokens of the longest input, with BOS, chat template and scored choice, without generated tokens."""
    truncated: bool
    """Whether its document was cut to fit the window."""
    cut_tokens: NonNegativeInt
    """Number of tokens that were cut out of the document."""
    target: str
    """The correct answer as text."""
    output: Any
    """The generated text, or [log-likelihood, is greedy] for each choice, as plain JSON."""
    scores: dict[str, float]
    """Metric → this sample's value, for metrics that are means over samples."""
    cluster: str | None = None
    """Name of the sample's document, if the task names it. Samples of one document aren't independent."""
    depth: Annotated[float, Field(ge=0, le=1)] | None = None
    """Position of the needle in the context, 0 (start) to 1 (end), for tasks that have a needle."""
    finish: str | None = None
    """What ended a generated answer: `stop`, `eos` or `length`."""
    prompt: Any = None
    """With `--keep-text` what the model was given, as text with its special tokens: the prompt of a generated
    answer, or for scored choices a list with [context, [continuation, …]] for each context. None: it isn't kept."""


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """A sample as plain JSON types; a prompt that isn't kept is left out."""
    found = dataclasses.asdict(sample)
    if sample.prompt is None:
        del found["prompt"]
    return found


def samples_to_jsonl(samples: Iterable[Sample]) -> str:
    """One JSON object a line, in the order given."""
    lines = [json.dumps(sample_to_json(sample), ensure_ascii=False, allow_nan=False) for sample in samples]
    return "".join(f"{line}\n" for line in lines)


def samples_from_jsonl(content: bytes) -> tuple[Sample, ...]:
    """Inverse of `samples_to_jsonl`, from UTF-8. Raises ValueError, naming the line, for any other content."""
    found = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line:
            try:
                found.append(made_from(Sample, read_json(line)))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    if len({sample.index for sample in found}) < len(found):
        raise ValueError("two lines have the same index")
    return tuple(found)


def _check(samples: Sequence[Sample], records: Sequence[Record]) -> None:
    """Raises ValueError with the reason if records count other samples or documents than there are."""
    clusters = {sample.cluster for sample in samples}
    for record in records:
        check_count(record.documents, None if None in clusters else len(clusters), "documents")
        check_count(record.truncated, sum(sample.truncated for sample in samples), "truncated samples")


def _mean_score(samples: Sequence[Sample], record: Record) -> float | None:
    """Mean of a metric over samples. For a metric without values per sample, the record's own value."""
    scores = [sample.scores[record.metric] for sample in samples if record.metric in sample.scores]
    if scores:
        check_count(record.n, len(scores), "samples")
        return math.fsum(scores) / len(scores)
    if not samples or (record.n or 0) > len(samples):
        raise ValueError(f"its record of {record.metric} has other samples")
    return record.value


SAMPLES: Artefact[tuple[Sample, ...]] = ARTEFACTS.register(
    "samples",
    Artefact(
        folder="samples",
        suffix="jsonl",
        encode=lambda samples: samples_to_jsonl(samples).encode(),
        decode=samples_from_jsonl,
        check=_check,
        parts=lambda samples: {sample.prompt_digest: sample for sample in samples},
        other=_mean_score,
    ),
)
