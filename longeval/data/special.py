"""Special tokens of a tokenizer: what it puts in front of a text, and texts that spell them.

A tokenizer takes `</s>` in a document for the control token of that name. It is text like any other here, unless a
user asks for the other reading. Control tokens that a chat template writes are told apart from what messages spell by
marks, which stand for them in a rendered prompt.

transformers' `split_special_tokens` isn't enough: a Unigram vocabulary holds `</s>` as a piece and finds it, a slow
tokenizer then leaves all other added tokens out as well, and neither knows which `<|im_start|>` the template wrote.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.errors import LongEvalError


class Encoded(NamedTuple):
    """A text as a tokenizer reads it, nothing added."""

    ids: list[int]
    """Token ids."""
    ends_T: npt.NDArray[np.int64] | None
    """End of each token in characters of the text, shape (T,), as the tokenizer says; None where it can't tell."""


@functools.lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> SpecialTokens:
    """The special tokens of a transformers tokenizer, looked up once."""
    return SpecialTokens(tokenizer)


def prefix_ids(tokenizer: Any) -> tuple[int, ...]:
    """The prefix of inputs that have one: what the tokenizer puts there itself, else its BOS if it has one."""
    bos_id = tokenizer.bos_token_id
    return own_prefix(tokenizer) or (() if bos_id is None else (int(bos_id),))


def own_prefix(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts in front of every text: one BOS, several tokens, or nothing."""
    if getattr(tokenizer, "is_fast", False):  # which tells what is the text's
        for probe in ("a", "1", "A."):  # a normalizer may leave nothing of one
            encoding = tokenizer.backend_tokenizer.encode(probe)
            if (
                first := next((i for i, part in enumerate(encoding.sequence_ids) if part is not None), None)
            ) is not None:
                return tuple(encoding.ids[:first])
    whole, text = list(tokenizer("a")["input_ids"]), list(tokenizer("a", add_special_tokens=False)["input_ids"])
    for start in range(len(whole) - len(text) + 1):
        if text and whole[start : start + len(text)] == text:
            return tuple(int(token) for token in whole[:start])
    return tuple(whole[:1]) if whole[:1] == [tokenizer.bos_token_id] else ()


class SpecialTokens:
    """Finds spellings of a tokenizer's special tokens in texts, and encodes texts that have some.

    Args:
        tokenizer: A transformers tokenizer, which is not changed.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        decoder = getattr(tokenizer, "added_tokens_decoder", {})  # without it, a text can't spell one
        added = {token.content: (int(number), token) for number, token in decoder.items()}
        named = set(getattr(tokenizer, "all_special_tokens", ()))  # BOS, EOS, …, which files needn't flag as special
        self.ids = {
            text: number for text, (number, token) in added.items() if text and (token.special or text in named)
        }
        """Special token as it is spelt → its id."""
        self._ordinary = {text: number for text, (number, _) in added.items() if text and text not in self.ids}
        # Random, so that no document can contain a mark; token ids don't depend on it.
        secret = secrets.token_hex(8)
        self._marks = {text: f"\ufdd0{secret}.{number}\ufdd1" for text, number in self.ids.items()}
        self._hidden = {text: f"\ufdd0{secret}-{number}\ufdd1" for text, number in self.ids.items()}
        self._names = {mark: text for marks in (self._marks, self._hidden) for text, mark in marks.items()}
        self._spelt = _any_of(self.ids)
        self._mark = re.compile(rf"\ufdd0{secret}\.\d+\ufdd1")
        self._hiding = re.compile(rf"\ufdd0{secret}-\d+\ufdd1")

    def spelt(self, text: str) -> Counter[str]:
        """How often a text spells each special token; marks are none."""
        return Counter(self._spelt.findall(text))

    def is_spelt(self, text: str) -> bool:
        """Whether a text spells any."""
        return self._spelt.search(text) is not None

    def among(self, ids: Sequence[int]) -> Counter[str]:
        """How often each special token is among token ids."""
        names = {number: text for text, number in self.ids.items()}
        return Counter(names[token] for token in ids if token in names)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens in it as they are spelt."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def encode(self, text: str, *, parse: bool, offsets: bool = False) -> Encoded:
        """Token ids of a text, nothing added.

        Args:
            text: Marks in it are control tokens.
            parse: Whether special tokens that it spells are control tokens too, as for the tokenizer itself.
            offsets: Whether to look up where tokens end.

        Raises:
            LongEvalError: The tokenizer takes a spelling for the control token whatever it is told.
        """
        if parse or not self.is_spelt(text):
            return self._encode(self.unmarked(text), offsets=offsets)
        if getattr(self._tokenizer, "is_fast", False):
            backend, true_ids = self._plain
            encoding = backend.encode(text, add_special_tokens=False)
            ends_T = np.array([end for _, end in encoding.offsets], dtype=np.int64)
            return Encoded([true_ids.get(token, token) for token in encoding.ids], ends_T if offsets else None)
        return Encoded(self._by_parts(text), None)

    def rendered(self, render: Callable[[list[dict[str, str]]], str], messages: Sequence[Mapping[str, str]]) -> str:
        """Messages as a chat template writes them, with marks for the special tokens that are the template's own.

        ValueError where the template changes what messages spell.
        """
        safe = [
            {key: self._spelt.sub(lambda match: self._hidden[match[0]], text) for key, text in message.items()}
            for message in messages
        ]
        text = self._spelt.sub(lambda match: self._marks[match[0]], render(safe))
        if safe != list(messages) and "\ufdd0" in self._mark.sub("", self._hiding.sub("", text)):
            raise ValueError(
                "it cuts or changes special tokens that a message spells, so they can't be told from its own"
            )
        return self._hiding.sub(lambda match: self._names[match[0]], text)

    def unmarked(self, text: str) -> str:
        """A rendered prompt as the template wrote it."""
        return self._mark.sub(lambda match: self._names[match[0]], text)

    def _encode(self, text: str, *, offsets: bool = False, **options: Any) -> Encoded:
        """As the tokenizer itself reads it."""
        offsets = offsets and bool(getattr(self._tokenizer, "is_fast", False))
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            # Without this it warns of texts longer than the model's native length, which is what we are here for.
            verbose=False,
            **options,
        )
        ends_T = None
        if offsets:
            ends_T = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 1]
        return Encoded(list(encoded["input_ids"]), ends_T)

    @functools.cached_property
    def _plain(self) -> tuple[Any, dict[int, int]]:
        """A copy of a fast tokenizer to which marks are its special tokens, and the true ids of its added tokens."""
        from tokenizers import Tokenizer

        copy = json.loads(self._tokenizer.backend_tokenizer.to_str())
        copy["truncation"] = copy["padding"] = None
        for token in copy["added_tokens"]:
            token["content"] = self._marks.get(token["content"], token["content"])
        _forget(copy["model"], {text: mark for text, mark in self._marks.items() if len(text) > 1})
        plain: Any = Tokenizer.from_str(json.dumps(copy))
        # Added tokens that are no part of the vocabulary are numbered anew.
        return plain, {plain.token_to_id(token["content"]): token["id"] for token in copy["added_tokens"]}

    def _by_parts(self, text: str) -> list[int]:
        """Token ids by a slow tokenizer: it splits texts at added tokens and reads what is between them one by one."""
        known = self._ordinary | {mark: self.ids[name] for name, mark in self._marks.items()}
        control = set(self.ids.values()) - {self._tokenizer.unk_token_id}
        ids: list[int] = []
        end = 0
        for match in (*_any_of(known).finditer(text), None):
            part = text[end : None if match is None else match.start()]
            plain = self._encode(part, split_special_tokens=True).ids if part else []
            if not control.isdisjoint(plain):
                name = self._spelt.search(part)
                raise LongEvalError(
                    f"--model: its tokenizer takes {name[0] if name else part[:40]!r} in a text for a control token, "
                    "whatever it is told",
                    "Add --parse-special if that is how it shall be read.",
                )
            ids += plain
            if match is not None:
                ids.append(known[match[0]])
                end = match.end()
        return ids


def spelt_note(what: str, model: str, found: Mapping[str, int], *, parsed: bool) -> str:
    """The note for the user on texts that spell special tokens.

    Args:
        what: Data set or task.
        model: The model whose tokens are spelt.
        found: How often each is spelt, at least one.
        parsed: Whether they are read as control tokens.
    """
    total, names = sum(found.values()), sorted(found, key=lambda name: (-found[name], name))
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    times = "once" if total == 1 else f"{total:,} times"
    how = (
        "read as control tokens (--parse-special)"
        if parsed
        else "read as plain text (--parse-special reads control tokens)"
    )
    return f"{what}: its texts spell special tokens of {model} {times} ({shown}), {how}"


def _any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Matches the longest of several texts; nothing where there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _forget(model: dict[str, Any], marks: Mapping[str, str]) -> None:
    """Renames special tokens in the vocabulary of a model that would find them in a text without merges."""
    if model["type"] == "BPE":
        return
    if isinstance(model["vocab"], list):  # Unigram: in sentencepiece, pieces that no text has have a score of 0
        model["vocab"] = [[marks.get(piece, piece) if score == 0 else piece, score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {marks.get(piece, piece): number for piece, number in model["vocab"].items()}
        model["unk_token"] = marks.get(model["unk_token"], model["unk_token"])
