"""A task's samples as token ids that a backend is asked, and the way back from its answers to lm-eval's.

lm-eval has an `Instance` for each choice of a question. A backend is asked once for each context, so that the choices
of one document share its pass; `Place` says where the answer to each instance is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.data.special import special_tokens
from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.checks import check_generation
from longeval.studies.tasks.prompts.encoding import Encoder, Pair
from longeval.studies.tasks.request import Overlong

Request = ChoicesRequest | GenerateRequest
Result = tuple[ChoiceScore, ...] | Generation
"""What a backend gives for a request."""

DEFAULT_NEW_TOKENS = 256
"""Most tokens of an answer where the task doesn't say: HFLM's `max_gen_toks`."""

_HEEDED = {"do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks"}
"""Settings of a generation that are heeded, or mean nothing in greedy decoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptWindow:
    """How samples become inputs of a model at one length."""

    tokenizer: Any
    """transformers' tokenizer of the model."""
    prefix: tuple[int, ...]
    """Token ids that every input starts with: BOS, or what else the tokenizer puts in front of a text."""
    length: int
    """Most tokens of prompt and longest choice, or of prompt and answer."""
    chat: bool
    """Whether prompts go through the tokenizer's chat template."""
    overlong: Overlong
    """What is done with a sample that doesn't fit."""
    parse_special: bool = False
    """Whether special tokens that texts spell are control tokens."""

    def encoder(self) -> Encoder:
        """Text → token ids in this window."""
        return Encoder(self.tokenizer, prefix=self.prefix, parse_special=self.parse_special)


class Place(NamedTuple):
    """Where the answer to an instance, or to one window of its text, is found."""

    request: int
    """Index of the request."""
    continuation: int
    """Index of the continuation in it; 0 for a generated answer."""


class Built(NamedTuple):
    """The requests of a sample."""

    requests: tuple[Request, ...]
    places: tuple[tuple[Place, ...], ...]
    """For each instance: one place, or those of all windows of a text that is scored whole."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PreparedSample:
    """One sample, ready to be asked."""

    index: int
    """Its number among all samples of the task, from 0."""
    doc: Any
    """The sample as the task has it, uncut; answers are scored by it."""
    instances: tuple[Any, ...]
    """lm-eval's, with their final texts; they are never given answers."""
    requests: tuple[Request, ...]
    """The same as token ids."""
    places: tuple[tuple[Place, ...], ...]
    """See `Built`."""
    prompt_digest: str
    """SHA-256 (first 16 hex digits) of all token ids that the model is given."""
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
    """Place of the needle in the context, 0 to 1, where the task names a field for it."""


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

    @property
    def requests(self) -> list[Request]:
        """All requests, in order."""
        return [request for sample in self.samples for request in sample.requests]

    def longest_reach(self) -> int:
        """Tokens of the longest input with its answer."""
        return longest(self.requests, reach)

    def inputs(self) -> list[npt.NDArray[np.int32]]:
        """Token ids of each sample's longest input, (T,) each: a prompt, or a context with its longest continuation."""
        return [_longest_input(sample.requests) for sample in self.samples]


class Decoding(NamedTuple):
    """How an answer is generated; always greedily."""

    max_new_tokens: int
    stop: tuple[str, ...]
    unheeded: str
    """Settings of the task that greedy decoding doesn't heed, as text; empty where there are none."""


def decoding(settings: Mapping[str, Any], max_new_tokens: int | None = None) -> Decoding:
    """A task's `generation_kwargs` as HFLM reads them.

    Args:
        settings: The task's; the most tokens under any of the names that lm-eval knows.
        max_new_tokens: Takes the place of the task's own number.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    check_generation(settings, "the task")  # of a task within a group's file, which no other check sees
    plain = dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))
    unheeded = {name: value for name, value in plain.items() if name not in _HEEDED and value not in (None, False, 1)}
    if plain["do_sample"]:
        unheeded = {"do_sample": True, "temperature": plain.get("temperature")} | unheeded
    return Decoding(
        max_new_tokens=max_new_tokens or int(plain["max_gen_toks"]),
        stop=tuple(dict.fromkeys(text for text in plain["until"] if text)),
        unheeded=", ".join(f"{name}={value}" for name, value in unheeded.items()),
    )


def build(instances: Sequence[Any], encoder: Encoder, *, length: int, max_new_tokens: int | None = None) -> Built:
    """Tokenises instances of lm-eval, of any request type.

    Args:
        instances: A sample's.
        encoder: The model's.
        length: Window length in tokens, for texts that are scored whole.
        max_new_tokens: Takes the place of the task's own number.

    Raises:
        LongEvalError: A continuation has no tokens, so that there is nothing to score.
    """
    contexts: dict[Hashable, tuple[int, list[int], list[list[int]]]] = {}

    def place(pair: Pair, key: Hashable) -> Place:
        """Puts a continuation beside those of the same key."""
        if not pair.continuation:
            raise LongEvalError("a choice has no tokens of its own after its context, so there is nothing to score")
        number, _, continuations = contexts.setdefault(key, (len(contexts), pair.context, []))
        continuations.append(pair.continuation)
        return Place(number, len(continuations) - 1)

    generated: dict[int, GenerateRequest] = {}
    places: list[tuple[Place, ...]] = []
    for index, instance in enumerate(instances):
        match instance.request_type:
            case "loglikelihood":
                (pair,) = encoder.pairs([instance.args])
                places.append((place(pair, tuple(pair.context)),))
            case "loglikelihood_rolling":  # each window is a request of its own: all they share is a first token
                windows = enumerate(encoder.windows(instance.args[0], length))
                places.append(tuple(place(pair, f"window {number} of {index}") for number, pair in windows))
            case "generate_until":
                generated[index] = _generate_request(instance, encoder, max_new_tokens)
                places.append(())
            case kind:
                raise LongEvalError(f"lm-eval's request type {kind!r} is unknown here")
    for number, index in enumerate(generated):
        places[index] = (Place(len(contexts) + number, 0),)
    choices = (
        ChoicesRequest(context_T=_int32(context), continuations=tuple(map(_int32, continuations)))
        for _, context, continuations in contexts.values()
    )
    return Built((*choices, *generated.values()), tuple(places))


def _generate_request(instance: Any, encoder: Encoder, max_new_tokens: int | None) -> GenerateRequest:
    prompt, settings = instance.args[:2]
    how = decoding(settings, max_new_tokens)
    ids = encoder.encode([prompt])[0] or [encoder.prefix_id]
    return GenerateRequest(prompt_T=_int32(ids), max_new_tokens=how.max_new_tokens, stop=how.stop)


def _int32(ids: Sequence[int]) -> npt.NDArray[np.int32]:
    return np.array(ids, dtype=np.int32)


def response(instance: Any, places: Sequence[Place], results: Sequence[Result]) -> Any:
    """What lm-eval expects as the answer to an instance: (log-likelihood, greedy), their sum over windows, or text."""
    if instance.request_type == "generate_until":
        answer = results[places[0].request]
        assert isinstance(answer, Generation)
        return answer.text
    scores = []
    for place in places:
        result = results[place.request]
        assert not isinstance(result, Generation)
        scores.append(result[place.continuation])
    if instance.request_type == "loglikelihood_rolling":
        return float(sum(score.log_likelihood for score in scores))
    return float(scores[0].log_likelihood), bool(scores[0].greedy)


def input_tokens(request: Request) -> int:
    """Tokens of the longest input: context and continuation, or prompt."""
    if isinstance(request, GenerateRequest):
        return len(request.prompt_T)
    return len(request.context_T) + max(map(len, request.continuations))


def reach(request: Request) -> int:
    """Tokens of the window that a request fills, those that may be generated included."""
    return input_tokens(request) + (request.max_new_tokens if isinstance(request, GenerateRequest) else 0)


def longest(requests: Iterable[Request], size: Any = input_tokens) -> int:
    """The largest `size` of any request; 0 for none."""
    return max(map(size, requests), default=0)


def all_inputs(request: Request) -> tuple[npt.NDArray[np.int32], ...]:
    """All token ids of a request: of its prompt, or of its context and each continuation."""
    return (request.prompt_T,) if isinstance(request, GenerateRequest) else (request.context_T, *request.continuations)


def as_text(requests: Sequence[Request], tokenizer: Any) -> Any:
    """What the model is given as text, special tokens as they are spelt: see `Sample.prompt`."""
    decode = special_tokens(tokenizer).decode
    texts: list[Any] = []
    for request in requests:
        first, *rest = [decode(ids_T.tolist()) for ids_T in all_inputs(request)]
        texts.append(first if isinstance(request, GenerateRequest) else [first, rest])
    return texts[0] if len(texts) == 1 and isinstance(texts[0], str) else texts


def _longest_input(requests: Sequence[Request]) -> npt.NDArray[np.int32]:
    if not requests:  # of an empty text, which is scored whole
        return _int32([])
    request = max(requests, key=input_tokens)
    if isinstance(request, GenerateRequest):
        return request.prompt_T
    return np.concatenate([request.context_T, max(request.continuations, key=len)])


def digest(requests: Sequence[Request], *, settings: bool) -> str:
    """SHA-256 (hex) of all token ids, in order; with `settings` of what ends a generated answer as well."""
    whole = hashlib.sha256()
    for request in requests:
        kind = "choices"
        if isinstance(request, GenerateRequest):
            kind = f"generate {repr((request.max_new_tokens, request.stop)) if settings else ''}"
        whole.update(f"{kind}\0".encode())
        for part_T in all_inputs(request):
            whole.update(f"{len(part_T)}\0".encode())
            whole.update(np.ascontiguousarray(part_T, dtype="<i4").tobytes())
    return whole.hexdigest()
