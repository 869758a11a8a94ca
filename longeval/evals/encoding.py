"""Text as token ids, exactly as lm-eval's own `HFLM` encodes it; only BOS is said explicitly instead of left to chance.

A context and its continuation are encoded together and split where the context alone ends, after the context's trailing
blanks have moved to the continuation: the model must have learnt " B" as one token, not " " and "B".
Source: lm_eval/api/model.py (`TemplateLM._encode_pair`, `loglikelihood`), lm_eval/models/huggingface.py (`tok_encode`,
`apply_chat_template`), lm_eval/utils.py (`get_rolling_token_windows`), all of lm-eval 0.4.13.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError

_TAIL = 1000
"""Characters at the end of a long context that are encoded again with each continuation."""

_REMEMBERED = 4
"""Contexts whose token ids are kept."""

_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


TEMPLATE_DATE = datetime.date(2025, 1, 1)
"""What chat templates that ask for the date are told, on any day."""


class Pair(NamedTuple):
    """A context and what is scored after it."""

    context: list[int]
    """Token ids, BOS included; never empty."""
    continuation: list[int]
    """Token ids."""


class Encoder:
    """Encodes prompts for one model.

    Args:
        tokenizer: A transformers tokenizer.
        bos: Whether every input starts with a BOS. One that the text already begins with, as chat templates write it,
            is not doubled.
    """

    def __init__(self, tokenizer: Any, *, bos: bool) -> None:
        assert not bos or tokenizer.bos_token_id is not None
        self.tokenizer = tokenizer
        self._bos = bos
        self._contexts: dict[str, list[int]] = {}

    @property
    def prefix_id(self) -> int:
        """What stands in for an empty context: BOS, or EOS where there is none.

        Raises:
            LongEvalError: The tokenizer has neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise LongEvalError("--model: its tokenizer has neither BOS nor EOS, and a task has an empty context")

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, nothing added."""
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            # Without this it warns of texts longer than the model's native length, which is what we are here for.
            verbose=False,
        )["input_ids"]
        return ids

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of inputs, each with its BOS if inputs have one."""
        return [self._with_bos(ids) for ids in self.plain(texts)]

    def unit_ends(self, text: str) -> npt.NDArray[np.int64]:
        """Where `text` may be cut, as ends in characters, shape (U,).

        These are the ends of its tokens; of its characters with a slow tokenizer, which can't tell where tokens end.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            return np.arange(1, len(text) + 1, dtype=np.int64)
        offsets = self.tokenizer(
            text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        ends_U = np.maximum.accumulate(np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1])
        if len(ends_U):
            ends_U[-1] = len(text)
        return ends_U

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """Contexts and continuations; an empty context becomes `prefix_id`."""
        pairs = []
        for text, added in texts:
            context, continuation = _move_blanks(text, added)
            if context:
                ids = self._context(context)
                pairs.append(self._split(ids, self._whole(context, ids, continuation)))
            else:
                pairs.append(self._led(self.plain([continuation])[0]))
        return pairs

    def windows(self, text: str, length: int) -> list[Pair]:
        """A text to be scored whole, as windows of at most `length` tokens: each token is scored once.

        The first window starts with `prefix_id`; a later one begins where the one before it ended, the last one has
        full context. lm-eval doesn't count a window's last token, which is scored but not fed: its `max_length` is
        `length` − 1. Where inputs have a BOS it is scored too, as lm-eval does.
        """
        from lm_eval import utils

        if length < 2:
            raise LongEvalError(f"--lengths {length}: too short for a token and its context", "Use 2 or more.")
        windows = utils.get_rolling_token_windows(
            token_list=self.encode([text])[0], prefix_token=self.prefix_id, max_seq_len=length - 1, context_len=1
        )
        return [Pair(*utils.make_disjoint_window(window)) for window in windows]

    def chat(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model's chat template writes them; without a generation prompt the last one is left open.

        A template that refuses a system message gets the others only, as in HFLM.
        """
        import jinja2

        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            # Some templates print today's date (Llama 3.2): prompts would be others tomorrow, and other cells.
            "strftime_now": TEMPLATE_DATE.strftime,
        }
        try:
            text: str = self.tokenizer.apply_chat_template(messages, **options)
        except jinja2.exceptions.TemplateError:
            rest = [message for message in messages if message["role"] != "system"]
            text = self.tokenizer.apply_chat_template(rest, **options)
        return text

    def _context(self, context: str) -> list[int]:
        """Token ids of a context; the last ones are remembered, since questions have several choices."""
        if context not in self._contexts:
            while len(self._contexts) >= _REMEMBERED:
                del self._contexts[next(iter(self._contexts))]
            self._contexts[context] = self.encode([context])[0]
        return self._contexts[context]

    def _whole(self, context: str, ids: list[int], continuation: str) -> list[int]:
        """Token ids of a context with its continuation, of which only the end is encoded anew where that is the same.

        What follows changes tokens near the end of a context only. That a tokenizer doesn't look further back is seen
        from the context itself: encoded alone, its end must give the last of its tokens.
        """
        end = _inner_word(context)
        if end is not None:
            tail, whole_tail = self.plain([context[end:], context[end:] + continuation])
            if ids[-len(tail) :] == tail:
                return ids[: -len(tail)] + whole_tail
        return self.encode([context + continuation])[0]

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos_id = self.tokenizer.bos_token_id
        return [bos_id, *ids] if self._bos and ids[:1] != [bos_id] else ids

    def _split(self, context: list[int], whole: list[int]) -> Pair:
        """lm-eval's split: the context as encoded alone, then what lies beyond its length in the whole."""
        return Pair(context, whole[len(context) :]) if context else self._led(whole)

    def _led(self, continuation: list[int]) -> Pair:
        """After an empty context; a continuation that begins with the prefix itself has that for its context."""
        if continuation[:1] == [self.prefix_id]:
            return Pair(continuation[:1], continuation[1:])
        return Pair([self.prefix_id], continuation)


def _inner_word(context: str) -> int | None:
    """Where the last thousand characters of a long context begin, at a blank between letters; None if there is none."""
    if len(context) < 2 * _TAIL:
        return None
    found = _BETWEEN_WORDS.search(context, len(context) - _TAIL, len(context) - _TAIL // 2)
    return None if found is None else found.start()


def _move_blanks(context: str, continuation: str) -> tuple[str, str]:
    """Moves the context's trailing blanks to the continuation."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation
