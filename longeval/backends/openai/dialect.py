"""Finds out which requests a server understands, and makes requests and reads answers in that form.

Every server that calls itself OpenAI-compatible lacks some features, sometimes silently. So only features that its
answers prove are used. Prompts are sent as token ids, and the answer must count as many tokens. Log-probabilities of
prompt tokens come from `prompt_logprobs` (vLLM's, by token id) or from `echo` with `logprobs` (OpenAI's, by position),
and every token must have one. The text that the server shows for the ids must be the text that our tokenizer encoded.

Sources: https://platform.openai.com/docs/api-reference/completions; vLLM's `CompletionRequest`.
Shapes: T tokens of a prompt, S scored tokens.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from longeval.backends.base import BackendError
from longeval.backends.openai.client import Body, Client, RefusedError, ServerError
from longeval.data.special import own_prefix, special_tokens
from longeval.errors import LongEvalError

logger = logging.getLogger(__name__)

COMPLETIONS = "completions"
PROBE = "The quick brown fox jumps over the lazy dog"
"""Text of the first requests. It is ASCII, so that a server shows its tokens as letters."""
FLOOR = -9999.0
"""vLLM's number for minus infinity."""
ROUNDING = 1e-5
"""Nats by which rounding may raise a log-probability above 0: float32 numbers near a logit of 100 are 8e-6 apart."""


class MisreadError(BackendError):
    """The server serves a model with another tokenizer than `--model`."""


class UnreadableError(ServerError):
    """An answer lacks a part that was requested."""


class Scored(NamedTuple):
    """Scores of the last S tokens of a prompt."""

    log_p_S: list[float]
    """Log-probability of each token given all tokens before it, nats."""
    greedy_S: list[bool] | None
    """Whether each token is the most probable one at its position; None if the server doesn't tell."""


class PromptForm(NamedTuple):
    """The form of prompts that a server accepts, and of its answers."""

    as_ids: bool
    """Whether prompts are token ids; otherwise they are text that the server's tokenizer encodes to the same ids."""
    returns_ids: bool
    """Whether answers have token ids (vLLM's `return_token_ids`), so that other settings of vLLM also work."""


class ScoringRoute(NamedTuple):
    """A way to get log-probabilities of prompt tokens from a server."""

    name: str
    """Name for messages."""
    settings: Body
    """The settings of a request that ask for them."""

    @property
    def echoes(self) -> bool:
        """Whether it is OpenAI's `echo` instead of vLLM's `prompt_logprobs`."""
        return "echo" in self.settings


_ROUTES = (
    ScoringRoute("prompt_logprobs", {"prompt_logprobs": 1}),
    ScoringRoute("echo with max_tokens 0", {"echo": True, "logprobs": 1, "max_tokens": 0}),
    ScoringRoute("echo with max_tokens 1", {"echo": True, "logprobs": 1, "max_tokens": 1}),
)
"""The ways in the order in which they are tried: by token ids first, then `echo` without and with a generated token."""


class Dialect:
    """The requests and answers that one server understands for a model."""

    def __init__(self, client: Client, model: str, tokenizer: Any) -> None:
        self._client = client
        self._model = model
        self._tokenizer = tokenizer
        self._is_checked = False
        self._shows_tokens = False
        self._letters: dict[int, str] = {}

    @functools.cached_property
    def form(self) -> PromptForm:
        """The form of prompts; the first access asks the server.

        Raises:
            LongEvalError: The server accepts none of our prompts.
        """
        ids = self._probe_ids()
        refusals = []
        for as_ids, extended in itertools.product((True, False), (True, False)):
            body = self._body(ids, 1, as_ids=as_ids) | ({"return_token_ids": True} if extended else {})
            try:
                choice = choice_of(self._client.post(COMPLETIONS, body), len(ids))
            except (RefusedError, UnreadableError) as error:
                if isinstance(error, RefusedError) and error.status in (404, 405):
                    raise LongEvalError(
                        f"--base-url {self._client.shown}: has no completions interface ({error.message})",
                        "A server with only a chat interface can't be evaluated, because it changes prompts.",
                    ) from None
                refusals.append(_reason(error))
                continue
            # A server may ignore `return_token_ids`, so the answer decides.
            return PromptForm(as_ids=as_ids, returns_ids=extended and bool(answer_ids(choice)))
        raise LongEvalError(
            f"--base-url {self._client.shown}: accepts a prompt neither as token ids ({refusals[0]}) nor as text "
            f"({refusals[-1]})",
            "Use a server with OpenAI's completions interface, such as vLLM's.",
        )

    @functools.cached_property
    def route(self) -> ScoringRoute:
        """The way to get log-probabilities; the first access asks the server.

        Raises:
            LongEvalError: The server gives none.
            MisreadError: The served model has another tokenizer.
        """
        ids = self._probe_ids()
        missing = []
        for route in _ROUTES:
            try:
                answer = self._client.post(COMPLETIONS, self.body(ids, 1) | route.settings)
                choice = choice_of(answer, len(ids))
                _read(route, choice, ids, 1)
            except (RefusedError, UnreadableError) as error:
                missing.append(f"{route.name}: {_reason(error)}")
                continue
            misread = self._misread(_shown(route, choice, ids), ids)
            if misread is None:
                # If the server shows the tokens of PROBE correctly, it must do so for every prompt.
                self._shows_tokens = route.echoes and self._are_ours(choice, ids)
                return route
            if route.settings.get("max_tokens") == 0:  # `echo` was ignored, and the number of tokens agrees by chance
                missing.append(f"{route.name}: the answer isn't the prompt")
                continue
            raise MisreadError(
                f"--base-url {self._client.shown}: reads our token ids of {PROBE!r} as {misread!r}",
                "--model must be the model that the server serves, because its tokenizer is used here.",
            )
        raise LongEvalError(
            f"--base-url {self._client.shown}: gives no log-probabilities of a prompt's tokens, which choices and "
            f"perplexity need ({'; '.join(missing)})",
            "Use tasks with generated answers, or another server, such as vLLM's.",
        )

    def check_reading(self) -> None:
        """Checks that the server decodes our token ids to our text, if it shows that. Answers alone would not tell.

        Raises:
            MisreadError: The served model has another tokenizer.
        """
        if self._is_checked or not self.form.as_ids:
            return
        self._is_checked = True
        try:
            _ = self.route
        except MisreadError:
            raise
        except LongEvalError:
            logger.info("%s doesn't show how it reads token ids: --model must be the served model", self._client.shown)

    def body(self, ids: Sequence[int], max_tokens: int) -> Body:
        """A request for a greedy continuation.

        Raises:
            LongEvalError: The server needs text, and no text has exactly these tokens.
        """
        return self._body(ids, max_tokens, as_ids=self.form.as_ids)

    def _body(self, ids: Sequence[int], max_tokens: int, *, as_ids: bool) -> Body:
        prompt = list(ids) if as_ids else self._text(ids)
        return {"model": self._model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}

    def scoring_body(self, ids: Sequence[int], *, greedy: bool) -> Body:
        """A request for log-probabilities of the prompt's tokens and, with `greedy`, of the most probable tokens."""
        settings = dict(self.route.settings)
        if not greedy and not self.route.echoes:
            settings["prompt_logprobs"] = 0  # only the prompt's own tokens, which halves the answer
        return self.body(ids, 1) | settings

    def read(self, choice: Body, ids: Sequence[int], first: int) -> Scored:
        """The log-probabilities of a prompt's tokens from index `first` on.

        Raises:
            UnreadableError: The answer doesn't have them, or is about another text.
        """
        scored = _read(self.route, choice, ids, first)
        if self._shows_tokens and not self._are_ours(choice, ids):
            raise UnreadableError("the answer is about other tokens than those that were sent")
        return scored

    def _misread(self, shown: str | None, ids: Sequence[int]) -> str | None:
        """The text that the server shows for our token ids if it differs from ours; None if equal or not shown."""
        if shown is None:
            return None
        for special in (*special_tokens(self._tokenizer).ids, *self._tokenizer.all_special_tokens):
            shown = shown.replace(special, "")
        # Only letters are compared, because servers show spaces and bytes differently. Some leave out the first token.
        written = [_letters(self._tokenizer.decode(ids[start:], skip_special_tokens=True)) for start in (0, 1)]
        return None if _letters(shown).startswith(tuple(written)) else shown[:80]

    def _are_ours(self, choice: Body, ids: Sequence[int]) -> bool:
        """Whether the tokens beside echoed log-probabilities are those of the prompt, comparing only ASCII letters."""
        shown = choice["logprobs"].get("tokens")
        if not isinstance(shown, list) or len(shown) < len(ids):
            return False
        special = set(self._tokenizer.all_special_ids)
        for token, text in zip(ids, shown, strict=False):
            if token not in self._letters:
                written = "" if token in special else self._tokenizer.decode([token])
                self._letters[token] = _letters(written) if written.isascii() else ""
            if self._letters[token] and (not isinstance(text, str) or _letters(text) != self._letters[token]):
                return False
        return True

    def _probe_ids(self) -> list[int]:
        return [int(token) for token in self._tokenizer(PROBE)["input_ids"]]

    def _text(self, ids: Sequence[int]) -> str:
        """A text that the model's tokenizer encodes to exactly these ids, with or without the prefix that it adds."""
        for kept in (list(ids), list(ids)[len(own_prefix(self._tokenizer)) :]):
            text: str = self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if list(self._tokenizer(text)["input_ids"]) == list(ids):
                return text
        raise LongEvalError(
            f"--base-url {self._client.shown}: accepts prompts only as text, and no text has exactly the {len(ids)} "
            "tokens of this one",
            "Use a server that accepts token ids, such as vLLM's.",
        )


def choice_of(answer: Body, num_prompt: int) -> Body:
    """The first choice of an answer.

    Raises:
        UnreadableError: There is none, or the server states another number of prompt tokens than were sent.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnreadableError("the server's answer has no choices")
    read = told_count(answer, "prompt_tokens")
    if read is not None and read != num_prompt:
        raise UnreadableError(f"the server read {read} tokens, but {num_prompt} were sent")
    return choices[0]


def told_count(answer: Body, name: str) -> int | None:
    """A number of tokens in an answer's `usage`; None if the server doesn't state it."""
    usage = answer.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def answer_ids(choice: Body) -> list[int]:
    """Token ids of an answer; empty if the server gives none."""
    ids = choice.get("token_ids")
    return ids if isinstance(ids, list) and all(isinstance(token, int) for token in ids) else []


def _read(route: ScoringRoute, choice: Body, ids: Sequence[int], first: int) -> Scored:
    """The log-probabilities in an answer; raises UnreadableError if any is missing."""
    if route.echoes:
        return _by_place(choice, ids, first, num_generated=route.settings["max_tokens"])
    return _by_id(choice, ids, first)


def _by_id(choice: Body, ids: Sequence[int], first: int) -> Scored:
    """Reads `prompt_logprobs`: a map from token id to log-probability for each position, own token included."""
    places = choice.get("prompt_logprobs")
    if not isinstance(places, list):
        raise UnreadableError("none in the answer")
    _check_count(len(places), len(ids))
    log_p_S, greedy_S = [], []
    for token, place in zip(ids[first:], places[first:], strict=True):
        if not isinstance(place, dict) or str(token) not in place:
            raise UnreadableError(f"token {token} isn't at its position")
        values = {key: _finite(told.get("logprob") if isinstance(told, dict) else None) for key, told in place.items()}
        log_p_S.append(values[str(token)])
        greedy_S.append(values[str(token)] >= max(values.values()))
    return Scored(log_p_S, greedy_S)


def _by_place(choice: Body, ids: Sequence[int], first: int, *, num_generated: int) -> Scored:
    """Reads `echo` with `logprobs`: lists over the prompt and at most `num_generated` tokens after it."""
    told = choice.get("logprobs")
    values = told.get("token_logprobs") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(values, list):
        raise UnreadableError("no logprobs in the answer")
    # With fewer values, `echo` was ignored; with more, the server read or generated other tokens than requested.
    _check_count(len(values) - num_generated if len(values) > len(ids) else len(values), len(ids))
    log_p_S = [_finite(value) for value in values[first : len(ids)]]
    tops = told.get("top_logprobs")
    if not isinstance(tops, list) or len(tops) < len(ids):
        return Scored(log_p_S, None)
    greedy_S = []
    for value, top in zip(log_p_S, tops[first : len(ids)], strict=True):
        if not isinstance(top, dict) or not top:
            return Scored(log_p_S, None)
        # Values are compared, because several ids can have the same text, such as parts of characters.
        greedy_S.append(value >= max(float("-inf") if other is None else _log_p(other) for other in top.values()))
    return Scored(log_p_S, greedy_S)


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise UnreadableError(f"log-probabilities for {found} of {expected} tokens")


def _finite(value: Any) -> float:
    """The log-probability of a prompt token; raises UnreadableError for minus infinity and invalid values."""
    log_p = _log_p(value)
    if log_p <= FLOOR:
        raise UnreadableError(f"{value} as a log-probability of a token")
    return log_p


def _log_p(value: Any) -> float:
    """A log-probability, which may be minus infinity; values that rounding raised above 0 become 0.

    Raises:
        UnreadableError: The value can't be a log-probability.
    """
    try:
        log_p = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an int beyond float64
        log_p = math.nan
    if not log_p <= ROUNDING:  # also true for NaN
        shown = "no" if value is None else f"{str(value)[:40]} as a"
        raise UnreadableError(f"{shown} log-probability of a token")
    return min(log_p, 0.0)


def _shown(route: ScoringRoute, choice: Body, ids: Sequence[int]) -> str | None:
    """The prompt's text as the server shows it, or None. `prompt_logprobs` lack the first token."""
    if route.echoes:
        text = choice.get("text")
        return text if isinstance(text, str) else None
    places = zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)
    texts = [place[str(token)].get("decoded_token") for token, place in places]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _letters(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isalpha())


def _reason(error: ServerError) -> str:
    return error.message if isinstance(error, RefusedError) else str(error)
