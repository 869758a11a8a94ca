"""Text as token ids, encoded as lm-eval's own `HFLM` does it (0.4.13), with three differences.

- The prefix of an input (BOS, or whatever else the tokenizer puts in front of a text) is given explicitly.
- A text that is scored whole has its prefix once, unscored: lm-eval scores a BOS after the BOS.
- Special tokens that a text spells are text: only a chat template writes control tokens (see `data.special`).

A context and its continuation are encoded together and split where the context alone ends, after the context's trailing
blanks have moved to the continuation: the model must have learnt " B" as one token, not " " and "B".
Source: lm_eval/api/model.py (`TemplateLM._encode_pair`, `loglikelihood`), lm_eval/models/huggingface.py (`tok_encode`,
`apply_chat_template`), lm_eval/utils.py (`get_rolling_token_windows`).
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.data.special import special_tokens
from longeval.errors import LongEvalError
from longeval.studies.tasks.definitions.templates import reason_of, within_bounds

_TAIL = 1000
"""Characters at the end of a long context that are encoded again with each continuation."""

_REMEMBERED = 4
"""Contexts whose token ids are kept."""

_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")

TEMPLATE_DATE = datetime.date(2025, 1, 1)
"""The date that chat templates get, on any day."""


class Pair(NamedTuple):
    """A context and the continuation that is scored after it."""

    context: list[int]
    """Token ids, prefix included; never empty."""
    continuation: list[int]
    """Token ids."""


class Encoder:
    """Encodes prompts for one model.

    Args:
        tokenizer: transformers' tokenizer.
        prefix: Token ids that every input starts with; not doubled where a chat template writes them itself.
        parse_special: Whether special tokens that texts spell are control tokens.
    """

    def __init__(self, tokenizer: Any, *, prefix: Sequence[int], parse_special: bool = False) -> None:
        self.tokenizer = tokenizer
        self.special = special_tokens(tokenizer)
        """Finds special tokens in texts, and writes prompts as the template wrote them."""
        self._prefix = list(prefix)
        self._parse = parse_special
        self._context = functools.lru_cache(maxsize=_REMEMBERED)(lambda text: self.encode([text])[0])
        """Token ids of a context; the last ones are remembered, since questions have several choices."""

    @property
    def prefix_id(self) -> int:
        """The token in place of an empty context where inputs have no prefix: BOS, or EOS where there is none."""
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise LongEvalError("--model: its tokenizer has neither BOS nor EOS, and a task has an empty context")

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, nothing added."""
        return [self.special.encode(text, parse=self._parse).ids for text in texts]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of inputs, each with its prefix if inputs have one."""
        return [self._with_prefix(ids) for ids in self.plain(texts)]

    def unit_ends(self, text: str) -> npt.NDArray[np.int64]:
        """Where `text` may be cut, in characters, shape (U,): its tokens' ends, or with a slow tokenizer any place."""
        ends_T = self.special.encode(text, parse=self._parse, offsets=True).ends_T
        if ends_T is None:
            return np.arange(1, len(text) + 1, dtype=np.int64)
        ends_U = np.maximum.accumulate(ends_T)
        if len(ends_U):
            ends_U[-1] = len(text)
        return ends_U

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Contexts and continuations; an empty context becomes the prefix, or `prefix_id`."""
        return [self._pair(context, continuation) for context, continuation in texts]

    def _pair(self, context: str, continuation: str) -> Pair:
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation  # the context's trailing blanks go with it
        if not bare:
            return self._led(self.plain([continuation])[0])
        ids = self._context(bare)
        whole = self._whole(bare, ids, continuation)
        return Pair(ids, whole[len(ids) :]) if ids else self._led(whole)

    def windows(self, text: str, length: int) -> list[Pair]:
        """A text to be scored whole, as windows of at most `length` tokens: each token is scored once.

        The first window starts with the prefix, or with `prefix_id` where inputs have none, and nothing of that is
        scored. A later one scores `length` − 1 tokens behind the last of the one before it; the last has full context.
        So are lm-eval's windows, which doesn't count a window's last token: its `max_length` is `length` − 1.
        """
        first = self._led(self.plain([text])[0])
        start, ids = len(first.context), [*first.context, *first.continuation]
        if length <= start:
            raise LongEvalError(
                f"--lengths {length}: too short for a token and its context", f"Use {start + 1} or more."
            )
        windows, end = [], length
        while start < len(ids):
            end = min(end, len(ids))
            windows.append(Pair(ids[max(0, end - length) : start], ids[start:end]))
            start, end = end, end + length - 1
        return windows

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model's chat template writes them; without a generation prompt the last one is left open.

        Marks stand for the special tokens that the template writes. A template that refuses a system message gets the
        others only, as in HFLM.

        Raises:
            LongEvalError: The template can't be rendered, or goes beyond its bounds.
        """
        import jinja2

        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            # Some templates print today's date (Llama 3.2): prompts would be others tomorrow, and other cells.
            "strftime_now": TEMPLATE_DATE.strftime,
        }

        def render(safe: list[dict[str, str]]) -> str:
            return within_bounds(lambda: str(self.tokenizer.apply_chat_template(safe, **options)))

        try:
            try:
                return self.special.rendered(render, messages)
            except jinja2.exceptions.TemplateError:
                return self.special.rendered(render, [message for message in messages if message["role"] != "system"])
        except Exception as error:
            raise LongEvalError(
                f"--model: the chat template of its tokenizer can't be rendered: {reason_of(error)}",
                "--chat-template off leaves it out.",
            ) from error

    def _whole(self, context: str, ids: list[int], continuation: str) -> list[int]:
        """Token ids of a context with its continuation; only the end of a long context is encoded again.

        That does where the end, encoded alone, gives the last of the context's tokens: then the tokenizer looks no
        further back.
        """
        end = _inner_word(context)
        if end is not None:
            tail, whole_tail = self.plain([context[end:], context[end:] + continuation])
            if ids[-len(tail) :] == tail:
                return ids[: -len(tail)] + whole_tail
        return self.encode([context + continuation])[0]

    def _with_prefix(self, ids: list[int]) -> list[int]:
        return ids if ids[:1] == self._prefix[:1] else [*self._prefix, *ids]

    def _led(self, continuation: list[int]) -> Pair:
        """After an empty context; a continuation that begins with the prefix itself has that for its context."""
        lead = self._prefix or [self.prefix_id]
        rest = continuation[len(lead) :] if continuation[: len(lead)] == lead else continuation
        return Pair(list(lead), rest)


def _inner_word(context: str) -> int | None:
    """Where the last thousand characters of a long context begin, at a blank between letters; None if there is none."""
    if len(context) < 2 * _TAIL:
        return None
    found = _BETWEEN_WORDS.search(context, len(context) - _TAIL, len(context) - _TAIL // 2)
    return None if found is None else found.start()
