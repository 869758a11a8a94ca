"""Sample-level outcomes of a downstream task: what a cell's scores are made of, one line of JSON each.

A record of a task holds means; these hold every answer, so that a score can be traced to the prompts behind it, two
methods can be compared on the same samples, and figures by depth need no model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample of a task as one model with one method answered it."""

    index: int
    """Which of the task's samples, counted from 0 over all that the task has: equal in every method and length."""
    prompt_digest: str
    """SHA-256 (first 16 hex digits) of the token ids of everything the model was given: prompt, and choices if any."""
    tokens: int
    """Tokens of the longest input, BOS, chat template and scored choice included; generated tokens are not."""
    truncated: bool
    """Whether its document was cut to fit the window."""
    cut_tokens: int
    """Tokens that were cut out of the document; 0 where none."""
    target: str
    """What would be right, as text."""
    output: Any
    """The generated text, or a list of [log-likelihood, greedy] per choice; plain JSON."""
    scores: dict[str, float]
    """Metric → this sample's value, for metrics that are means over samples."""
    cluster: str | None = None
    """The document it shares with other samples, where the task says so: they are not independent."""
    depth: float | None = None
    """Where in the context the needle lies, 0 (start) to 1 (end), for tasks that have one."""
    finish: str | None = None
    """What ended a generated answer: `stop`, `eos` or `length`."""


def samples_to_jsonl(samples: Iterable[Sample]) -> str:
    """One JSON object a line, in the order given."""
    lines = [json.dumps(dataclasses.asdict(sample), ensure_ascii=False, allow_nan=False) for sample in samples]
    return "".join(f"{line}\n" for line in lines)


def samples_from_jsonl(text: str) -> tuple[Sample, ...]:
    """Inverse of `samples_to_jsonl`; ValueError or TypeError if `text` is nothing of the kind."""
    return tuple(Sample(**json.loads(line)) for line in text.split("\n") if line)
