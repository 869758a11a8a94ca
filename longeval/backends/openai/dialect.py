"""What a server understands, found out by asking it once; requests and answers in those words.

Every server that calls itself OpenAI-compatible leaves something out, some silently. So nothing is believed that its
answers don't show. Prompts go as token ids, and the answer must count as many. Log-probabilities of prompt tokens come
from `prompt_logprobs` (vLLM's: by token id) or from `echo` with `logprobs` (OpenAI's: by place), and there must be one
for every token. What the server reads the ids as must be what our tokenizer wrote.

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
"""ASCII, so that a server which shows its tokens as text shows letters."""
FLOOR = -9999.0
"""What vLLM writes for minus infinity."""
ROUNDING = 1e-5
"""Nats by which rounding may put a log-probability above 0: float32 numbers near a logit of 100 are 8e-6 apart."""


class MisreadError(BackendError):
    """The server serves a model with another tokenizer than `--model`."""


class UnreadableError(ServerError):
    """An answer doesn't hold what was asked for."""


class Scored(NamedTuple):
    """The last S tokens of a prompt."""

    log_p_S: list[float]
    """Log-probability of each given all before it, nats."""
    greedy_S: list[bool] | None
    """Whether nothing at its place is more probable; None where the server doesn't say."""


class PromptForm(NamedTuple):
    """How prompts go to a server, and what its answers hold."""

    as_ids: bool
    """Whether as token ids; otherwise as text that the server's tokenizer makes the same ids of."""
    returns_ids: bool
    """Whether answers come with their token ids (vLLM's `return_token_ids`), and other settings of vLLM's are known."""


class ScoringRoute(NamedTuple):
    """How a server gives log-probabilities of prompt tokens."""

    name: str
    """For messages."""
    settings: Body
    """The part of a request that asks for them."""

    @property
    def echoes(self) -> bool:
        """Whether they come by OpenAI's `echo`, else by vLLM's `prompt_logprobs`."""
        return "echo" in self.settings


_ROUTES = (
    ScoringRoute("prompt_logprobs", {"prompt_logprobs": 1}),
    ScoringRoute("echo with max_tokens 0", {"echo": True, "logprobs": 1, "max_tokens": 0}),
    ScoringRoute("echo with max_tokens 1", {"echo": True, "logprobs": 1, "max_tokens": 1}),
)
"""In the order in which they are tried: exact ids first, then `echo`, with nothing generated where that is allowed."""


class Dialect:
    """What one server understands.

    Args:
        client: The server.
        model: The model's name there.
        tokenizer: transformers' tokenizer of that model.
    """

    def __init__(self, client: Client, model: str, tokenizer: Any) -> None:
        self._client = client
        self._model = model
        self._tokenizer = tokenizer
        self._is_checked = False
        self._shows_tokens = False
        self._letters: dict[int, str] = {}

    @functools.cached_property
    def form(self) -> PromptForm:
        """How prompts go there; asks at the first use.

        Raises:
            LongEvalError: It takes no prompt of ours.
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
                        f"--base-url {self._client.shown}: no completions there ({error.said})",
                        "A server for chat alone can't be evaluated: prompts must arrive as they are.",
                    ) from None
                refusals.append(_reason(error))
                continue
            # A server that doesn't know `return_token_ids` may ignore it: the answer says what it knows.
            return PromptForm(as_ids=as_ids, returns_ids=extended and bool(answer_ids(choice)))
        raise LongEvalError(
            f"--base-url {self._client.shown}: takes a prompt neither as token ids ({refusals[0]}) nor as text "
            f"({refusals[-1]})",
            "Use a server with OpenAI's completions interface, as vLLM's is.",
        )

    @functools.cached_property
    def route(self) -> ScoringRoute:
        """How log-probabilities come back; asks at the first use.

        Raises:
            LongEvalError: They don't, or the model there has another vocabulary.
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
                # A server that shows the probe's tokens as ours has to do so for every prompt.
                self._shows_tokens = route.echoes and self._are_ours(choice, ids)
                return route
            if route.settings.get("max_tokens") == 0:  # an ignored `echo`, and as many tokens by chance
                missing.append(f"{route.name}: the answer isn't the prompt")
                continue
            raise MisreadError(
                f"--base-url {self._client.shown}: reads our token ids of {PROBE!r} as {misread!r}",
                "--model must name the model that the server serves: its tokenizer is used here.",
            )
        raise LongEvalError(
            f"--base-url {self._client.shown}: gives no log-probabilities of a prompt's tokens, which choices and "
            f"perplexity need ({'; '.join(missing)})",
            "Tasks whose answers are generated work there. vLLM's server gives them.",
        )

    def check_reading(self) -> None:
        """Makes sure that the server reads our token ids as we write them, where it shows that; an answer wouldn't.

        Raises:
            MisreadError: It serves a model with another tokenizer.
        """
        if self._is_checked or not self.form.as_ids:
            return
        self._is_checked = True
        try:
            _ = self.route
        except MisreadError:
            raise
        except LongEvalError:
            logger.info("%s doesn't show how it reads token ids: --model must name what it serves", self._client.shown)

    def body(self, ids: Sequence[int], max_tokens: int) -> Body:
        """A request for a greedy continuation.

        Raises:
            LongEvalError: The server wants text, and no text has these tokens.
        """
        return self._body(ids, max_tokens, as_ids=self.form.as_ids)

    def _body(self, ids: Sequence[int], max_tokens: int, *, as_ids: bool) -> Body:
        prompt = list(ids) if as_ids else self._text(ids)
        return {"model": self._model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}

    def scoring_body(self, ids: Sequence[int], *, greedy: bool) -> Body:
        """A request for log-probabilities of the prompt's tokens; `greedy`: and for what is most probable."""
        settings = dict(self.route.settings)
        if not greedy and not self.route.echoes:
            settings["prompt_logprobs"] = 0  # those of the prompt's own tokens alone: half the answer
        return self.body(ids, 1) | settings

    def read(self, choice: Body, ids: Sequence[int], first: int) -> Scored:
        """The log-probabilities of a prompt's tokens from place `first` on.

        Raises:
            UnreadableError: The answer doesn't hold them, or those of another text.
        """
        scored = _read(self.route, choice, ids, first)
        if self._shows_tokens and not self._are_ours(choice, ids):
            raise UnreadableError("the answer is about other tokens than were sent")
        return scored

    def _misread(self, shown: str | None, ids: Sequence[int]) -> str | None:
        """What the server reads our token ids as, if that isn't what we wrote; None too where it shows nothing."""
        if shown is None:
            return None
        for special in (*special_tokens(self._tokenizer).ids, *self._tokenizer.all_special_tokens):
            shown = shown.replace(special, "")
        # Letters alone: servers show spaces and bytes in different ways. The first token isn't shown by all.
        written = [_letters(self._tokenizer.decode(ids[start:], skip_special_tokens=True)) for start in (0, 1)]
        return None if _letters(shown).startswith(tuple(written)) else shown[:80]

    def _are_ours(self, choice: Body, ids: Sequence[int]) -> bool:
        """Whether the tokens beside echoed log-probabilities are the prompt's; letters of plain ASCII are compared."""
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
        """A text that the model's tokenizer makes exactly these ids of, with what it puts in front by itself."""
        for kept in (list(ids), list(ids)[len(own_prefix(self._tokenizer)) :]):
            text: str = self._tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if list(self._tokenizer(text)["input_ids"]) == list(ids):
                return text
        raise LongEvalError(
            f"--base-url {self._client.shown}: takes prompts as text only, and no text has exactly the {len(ids)} "
            "tokens of this one",
            "Use a server that takes token ids, as vLLM's does.",
        )


def choice_of(answer: Body, num_prompt: int) -> Body:
    """The one choice of an answer.

    Raises:
        UnreadableError: There is none, or the server counts another number of prompt tokens than was sent.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UnreadableError("the server's answer has no choices")
    read = told_count(answer, "prompt_tokens")
    if read is not None and read != num_prompt:
        raise UnreadableError(f"the server read {read} tokens where {num_prompt} were sent")
    return choices[0]


def told_count(answer: Body, name: str) -> int | None:
    """A number of tokens in an answer's `usage`; None where the server doesn't say."""
    usage = answer.get("usage")
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def answer_ids(choice: Body) -> list[int]:
    """Token ids of an answer; empty where the server gives none."""
    ids = choice.get("token_ids")
    return ids if isinstance(ids, list) and all(isinstance(token, int) for token in ids) else []


def _read(route: ScoringRoute, choice: Body, ids: Sequence[int], first: int) -> Scored:
    """The log-probabilities in an answer; UnreadableError where any is missing."""
    if route.echoes:
        return _by_place(choice, ids, first, num_generated=route.settings["max_tokens"])
    return _by_id(choice, ids, first)


def _by_id(choice: Body, ids: Sequence[int], first: int) -> Scored:
    """Reads `prompt_logprobs`: for each place a map from token id to log-probability, the prompt's own among them."""
    places = choice.get("prompt_logprobs")
    if not isinstance(places, list):
        raise UnreadableError("none in the answer")
    _check_count(len(places), len(ids))
    log_p_S, greedy_S = [], []
    for token, place in zip(ids[first:], places[first:], strict=True):
        if not isinstance(place, dict) or str(token) not in place:
            raise UnreadableError(f"token {token} isn't where it was sent")
        values = {key: _finite(told.get("logprob") if isinstance(told, dict) else None) for key, told in place.items()}
        log_p_S.append(values[str(token)])
        greedy_S.append(values[str(token)] >= max(values.values()))
    return Scored(log_p_S, greedy_S)


def _by_place(choice: Body, ids: Sequence[int], first: int, *, num_generated: int) -> Scored:
    """Reads `echo` with `logprobs`: lists over the prompt and `num_generated` tokens that may follow it."""
    told = choice.get("logprobs")
    values = told.get("token_logprobs") if isinstance(told, dict) else None
    if not isinstance(told, dict) or not isinstance(values, list):
        raise UnreadableError("no logprobs in the answer")
    # Fewer: `echo` was ignored. More: the server read or wrote something else than was asked for.
    _check_count(len(values) - num_generated if len(values) > len(ids) else len(values), len(ids))
    log_p_S = [_finite(value) for value in values[first : len(ids)]]
    tops = told.get("top_logprobs")
    if not isinstance(tops, list) or len(tops) < len(ids):
        return Scored(log_p_S, None)
    greedy_S = []
    for value, top in zip(log_p_S, tops[first : len(ids)], strict=True):
        if not isinstance(top, dict) or not top:
            return Scored(log_p_S, None)
        # By value: several ids can be one text, half a character for one.
        greedy_S.append(value >= max(float("-inf") if other is None else _log_p(other) for other in top.values()))
    return Scored(log_p_S, greedy_S)


def _check_count(found: int, expected: int) -> None:
    if found != expected:
        raise UnreadableError(f"log-probabilities for {found} of {expected} tokens")


def _finite(value: Any) -> float:
    """The log-probability of a token that was read; UnreadableError where it is none, or stands for none."""
    log_p = _log_p(value)
    if log_p <= FLOOR:
        raise UnreadableError(f"{value} as a log-probability of a token")
    return log_p


def _log_p(value: Any) -> float:
    """A number that can be a log-probability, minus infinity included; what rounding put above 0 is 0."""
    try:
        log_p = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # of a whole number
        log_p = math.nan
    if not log_p <= ROUNDING:  # NaN isn't
        shown = "no" if value is None else f"{str(value)[:40]} as a"
        raise UnreadableError(f"{shown} log-probability of a token")
    return min(log_p, 0.0)


def _shown(route: ScoringRoute, choice: Body, ids: Sequence[int]) -> str | None:
    """The prompt as the server shows its tokens, if it does; by id without the first, which has no log-probability."""
    if route.echoes:
        text = choice.get("text")
        return text if isinstance(text, str) else None
    places = zip(ids[1:], choice["prompt_logprobs"][1:], strict=True)
    texts = [place[str(token)].get("decoded_token") for token, place in places]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None


def _letters(text: str) -> str:
    return "".join(character for character in text if character.isascii() and character.isalpha())


def _reason(error: ServerError) -> str:
    return error.said if isinstance(error, RefusedError) else str(error)
