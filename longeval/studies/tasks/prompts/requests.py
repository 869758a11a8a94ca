"""What lm-eval's tasks ask of a model, as token ids for a backend, and the way back from answers to responses.

lm-eval has an `Instance` for each choice of a question; a backend is asked once for each context, so that the choices
of one document share its pass. `SamplePlace` says where each instance's answer is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.backends.base import ChoiceScore, ChoicesRequest, GenerateRequest, Generation
from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.checks import check_generation
from longeval.studies.tasks.prompts.encoding import Encoder, Pair

Request = ChoicesRequest | GenerateRequest
Result = tuple[ChoiceScore, ...] | Generation
"""What a backend gives for a request."""

DEFAULT_NEW_TOKENS = 256
"""Most tokens of an answer where the task doesn't say: HFLM's `max_gen_toks`."""

_HARMLESS = {"do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks"}
"""Settings of a generation that are dealt with, or mean nothing once decoding is greedy."""


class SamplePlace(NamedTuple):
    """Where one part of an instance's answer stands."""

    request: int
    """Index of the request."""
    continuation: int
    """Index of the continuation in it; 0 for a generated answer."""


class Built(NamedTuple):
    """Requests, and where the answer of each instance is found in their results."""

    requests: tuple[Request, ...]
    places: tuple[tuple[SamplePlace, ...], ...]
    """For each instance: one place, or those of all windows of a text that is scored whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoding:
    """How an answer is generated: always greedily."""

    max_new_tokens: int
    stop: tuple[str, ...]
    unheeded: str
    """Settings of the task that greedy decoding doesn't heed, as text; empty where there are none."""


def decoding(settings: Mapping[str, Any], max_new_tokens: int | None = None) -> Decoding:
    """A task's `generation_kwargs` as HFLM reads them.

    Args:
        settings: The task's; tokens to generate under any of the names that lm-eval knows.
        max_new_tokens: Takes the place of the task's own number.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    check_generation(settings, "the task")  # of a task within a group's file, which no other check sees
    plain = dict(normalize_gen_kwargs(dict(settings), DEFAULT_NEW_TOKENS))
    unheeded = {name: value for name, value in plain.items() if name not in _HARMLESS and value not in (None, False, 1)}
    if plain["do_sample"]:
        unheeded = {"do_sample": True, "temperature": plain.get("temperature")} | unheeded
    return Decoding(
        max_new_tokens=max_new_tokens or int(plain["max_gen_toks"]),
        stop=tuple(dict.fromkeys(text for text in plain["until"] if text)),
        unheeded=", ".join(f"{name}={value}" for name, value in unheeded.items()),
    )


def build(instances: Sequence[Any], encoder: Encoder, *, length: int, max_new_tokens: int | None = None) -> Built:
    """Tokenises instances.

    Args:
        instances: lm-eval's, of any request types.
        encoder: The model's.
        length: Window length in tokens, for texts that are scored whole.
        max_new_tokens: Takes the place of the tasks' own number.

    Raises:
        LongEvalError: A continuation has no tokens, so that there is nothing to score.
    """
    scored = [index for index, instance in enumerate(instances) if instance.request_type == "loglikelihood"]
    pairs_of = dict(zip(scored, encoder.pairs([instances[index].args for index in scored]), strict=True))
    contexts = _Contexts()
    requests: list[GenerateRequest] = []
    generated: dict[int, int] = {}
    places: list[tuple[SamplePlace, ...]] = []
    for index, instance in enumerate(instances):
        kind = instance.request_type
        if kind == "loglikelihood":
            places.append((contexts.add(pairs_of[index]),))
        elif kind == "loglikelihood_rolling":
            # Windows of different texts begin with the same token; there is nothing to share in that.
            windows = encoder.windows(instance.args[0], length)
            places.append(tuple(contexts.add(pair, shared=False) for pair in windows))
        elif kind == "generate_until":
            generated[index] = len(requests)
            requests.append(_generate_request(instance, encoder, max_new_tokens))
            places.append(())
        else:
            raise LongEvalError(f"lm-eval's request type {kind!r} is unknown here")
    first = len(contexts.pairs)
    for index, request in generated.items():
        places[index] = (SamplePlace(first + request, 0),)
    return Built((*contexts.requests(), *requests), tuple(places))


def response(instance: Any, places: Sequence[SamplePlace], results: Sequence[Result]) -> Any:
    """What lm-eval expects as the answer to an instance: (log-likelihood, greedy), their sum over windows, or text."""
    found = [results[place.request] for place in places]
    if instance.request_type == "generate_until":
        assert isinstance(found[0], Generation)
        return found[0].text
    scores = []
    for result, place in zip(found, places, strict=True):
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


def all_inputs(request: Request) -> tuple[npt.NDArray[np.int32], ...]:
    """All token ids of a request: of its prompt, or of its context and each continuation."""
    return (request.prompt_T,) if isinstance(request, GenerateRequest) else (request.context_T, *request.continuations)


def longest_input(requests: Sequence[Request]) -> npt.NDArray[np.int32]:
    """Token ids of the longest input, shape (T,): a prompt, or a context with its longest continuation."""
    request = max(requests, key=input_tokens)
    if isinstance(request, GenerateRequest):
        return request.prompt_T
    return np.concatenate([request.context_T, max(request.continuations, key=len)])


def reach(request: Request) -> int:
    """Tokens of the window that the request fills, those that may be generated included."""
    return input_tokens(request) + (request.max_new_tokens if isinstance(request, GenerateRequest) else 0)


def digest(requests: Sequence[Request], *, settings: bool) -> str:
    """SHA-256 (hex) of all token ids, in order; with `settings` of what ends a generated answer as well."""
    whole = hashlib.sha256()
    for request in requests:
        if isinstance(request, GenerateRequest):
            parts, ending = [request.prompt_T], repr((request.max_new_tokens, request.stop))
            whole.update(f"generate {ending if settings else ''}\0".encode())
        else:
            parts = [request.context_T, *request.continuations]
            whole.update(b"choices\0")
        for part_T in parts:
            whole.update(f"{len(part_T)}\0".encode())
            whole.update(np.ascontiguousarray(part_T, dtype="<i4").tobytes())
    return whole.hexdigest()


class _Contexts:
    """Collects continuations by context."""

    def __init__(self) -> None:
        self.pairs: list[tuple[list[int], list[list[int]]]] = []
        self._shared: dict[tuple[int, ...], int] = {}

    def add(self, pair: Pair, *, shared: bool = True) -> SamplePlace:
        """A continuation's place: beside those of the same context, or, not `shared`, in a request of its own."""
        assert pair.context
        if not pair.continuation:
            raise LongEvalError("a choice has no tokens of its own after its context, so there is nothing to score")
        index = self._shared.setdefault(tuple(pair.context), len(self.pairs)) if shared else len(self.pairs)
        if index == len(self.pairs):
            self.pairs.append((pair.context, []))
        self.pairs[index][1].append(pair.continuation)
        return SamplePlace(index, len(self.pairs[index][1]) - 1)

    def requests(self) -> tuple[ChoicesRequest, ...]:
        return tuple(
            ChoicesRequest(
                context_T=np.array(context, dtype=np.int32),
                continuations=tuple(np.array(ids, dtype=np.int32) for ids in continuations),
            )
            for context, continuations in self.pairs
        )


def _generate_request(instance: Any, encoder: Encoder, max_new_tokens: int | None) -> GenerateRequest:
    prompt, settings = instance.args[:2]
    how = decoding(settings, max_new_tokens)
    ids = encoder.encode([prompt])[0] or [encoder.prefix_id]
    return GenerateRequest(prompt_T=np.array(ids, dtype=np.int32), max_new_tokens=how.max_new_tokens, stop=how.stop)
