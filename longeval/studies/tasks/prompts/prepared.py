"""What a prepared task is: its samples as token ids, for one model at one window length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from longeval.studies.tasks.prompts.encoding import Encoder
from longeval.studies.tasks.prompts.requests import Request, SamplePlace, longest_input
from longeval.studies.tasks.request import Overlong


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptWindow:
    """How samples become inputs of a model at one length."""

    tokenizer: Any
    """transformers' tokenizer of the model."""
    prefix: tuple[int, ...]
    """Token ids that every input starts with: BOS, or what else the tokenizer puts in front of a text."""
    length: int
    """n: tokens of prompt and longest choice, or of prompt and answer, at most."""
    chat: bool
    """Whether prompts go through the tokenizer's chat template."""
    overlong: Overlong
    """What is done with a sample that doesn't fit."""
    parse_special: bool = False
    """Whether special tokens that texts spell are control tokens."""

    def encoder(self) -> Encoder:
        """Text → token ids in this window."""
        return Encoder(self.tokenizer, prefix=self.prefix, parse_special=self.parse_special)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedSample:
    """One sample, ready to be asked."""

    index: int
    """Which of the task's samples, counted from 0 over all that it has."""
    doc: Any
    """The sample as the task has it, uncut; the task scores answers by it."""
    instances: tuple[Any, ...]
    """lm-eval's, with their final texts; without answers, and never given any."""
    requests: tuple[Request, ...]
    """The same as token ids."""
    places: tuple[tuple[SamplePlace, ...], ...]
    """Where in the requests' results the answer to each instance is found."""
    prompt_digest: str
    """SHA-256 (first 16 hex digits) of the token ids of everything the model is given."""
    tokens: int
    """Tokens of the longest input, scored choice included."""
    truncated: bool
    """Whether the document was cut."""
    cut_tokens: int
    """By how many tokens cutting shortened the longest input."""
    target: str
    """The right answer, as text."""
    cluster: str | None
    """Name of the document that several samples share, where the task names a field for it."""
    depth: float | None
    """Place of its needle in the context, 0 to 1, where the task names a field for it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedTask:
    """A task, ready to be asked of a model at one length under any method."""

    name: str
    """Its name in lm-eval."""
    samples: tuple[PreparedSample, ...]
    """In the order of the task."""
    skipped: Mapping[int, int]
    """Samples that were left out because they don't fit (`skip`): index → tokens of the window that would do."""
    num_docs: int
    """Samples that the task has in all."""
    request_type: str
    """`multiple_choice`, `loglikelihood`, `loglikelihood_rolling` or `generate_until`."""
    num_fewshot: int
    """Examples in front of each question."""
    max_new_tokens: int | None
    """Most tokens of an answer; None where nothing is generated."""
    spelt: Mapping[str, int]
    """How often documents, questions and answers spell each special token, before anything is cut."""
    digest: str
    """SHA-256 over all samples in order: token ids, what ends an answer, and what answers are held against."""
    notes: tuple[str, ...]
    """Lines that tell the user how the task is run."""

    @property
    def num_truncated(self) -> int:
        """Samples whose document was cut."""
        return sum(sample.truncated for sample in self.samples)

    def inputs(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of each sample's longest input, (T,) each."""
        return [longest_input(sample.requests) for sample in self.samples]
