"""Sample-level outcomes of a downstream task: what a cell's scores are made of, one line of JSON each.

A record of a task holds means; these hold every answer, so that a score can be traced to the prompts behind it, two
methods can be compared on the same samples, and figures by depth need no model.
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
    """One sample of a task as one model with one method answered it."""

    index: NonNegativeInt
    """Which of the task's samples, counted from 0 over all that the task has: equal in every method and length."""
    prompt_digest: str
    """SHA-256 (first 16 hex digits) of the token ids of everything the model was given: prompt, and choices if any."""
    tokens: NonNegativeInt
    """Tokens of the longest input, BOS, chat template and scored choice included; generated tokens are not."""
    truncated: bool
    """Whether its document was cut to fit the window."""
    cut_tokens: NonNegativeInt
    """Tokens that were cut out of the document; 0 where none."""
    target: str
    """What would be right, as text."""
    output: Any
    """The generated text, or a list of [log-likelihood, greedy] per choice; plain JSON."""
    scores: dict[str, float]
    """Metric → this sample's value, for metrics that are means over samples."""
    cluster: str | None = None
    """The document it shares with other samples, where the task says so: they are not independent."""
    depth: Annotated[float, Field(ge=0, le=1)] | None = None
    """Where in the context the needle lies, 0 (start) to 1 (end), for tasks that have one."""
    finish: str | None = None
    """What ended a generated answer: `stop`, `eos` or `length`."""


def samples_to_jsonl(samples: Iterable[Sample]) -> str:
    """One JSON object a line, in the order given."""
    lines = [json.dumps(dataclasses.asdict(sample), ensure_ascii=False, allow_nan=False) for sample in samples]
    return "".join(f"{line}\n" for line in lines)


def samples_from_jsonl(content: bytes) -> tuple[Sample, ...]:
    """Inverse of `samples_to_jsonl` (encoded); ValueError, naming the line, if `content` is nothing of the kind."""
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
    """Raises ValueError, saying what, where a task's records count other samples or documents."""
    clusters = {sample.cluster for sample in samples}
    for record in records:
        check_count(record.documents, None if None in clusters else len(clusters), "documents")
        check_count(record.truncated, sum(sample.truncated for sample in samples), "truncated samples")


def _mean_score(samples: Sequence[Sample], record: Record) -> float | None:
    """Mean of a metric over samples; the record's own value where it is one of all samples together."""
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
