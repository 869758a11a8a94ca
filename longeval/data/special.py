"""Special tokens of a tokenizer: the prefix that it adds to texts, and texts that contain the spelling of such a token.

A tokenizer reads `</s>` in a document as the control token of that name. Here it is read as plain text unless the user
asks for the tokenizer's reading. To distinguish the control tokens of a chat template from text in messages, unique
marks replace them in a rendered prompt.

transformers' `split_special_tokens` isn't enough: a Unigram vocabulary contains `</s>` as a piece and still finds it, a
slow tokenizer then ignores all other added tokens too, and neither knows which `<|im_start|>` the template wrote.
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
    """The tokens of a text, without added special tokens."""

    ids: list[int]
    """Token ids."""
    ends_T: npt.NDArray[np.int64] | None
    """End of each token in characters of the text, shape (T,); None if the tokenizer can't tell."""


@functools.lru_cache(maxsize=8)
def special_tokens(tokenizer: Any) -> SpecialTokens:
    """The special tokens of a transformers tokenizer, cached."""
    return SpecialTokens(tokenizer)


def prefix_ids(tokenizer: Any) -> tuple[int, ...]:
    """The prefix for inputs with a prefix: the tokenizer's own, or else its BOS if it has one."""
    bos_id = tokenizer.bos_token_id
    return own_prefix(tokenizer) or (() if bos_id is None else (int(bos_id),))


def own_prefix(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that a tokenizer adds before every text: one BOS, several tokens, or none."""
    if getattr(tokenizer, "is_fast", False):  # fast tokenizers tell which tokens belong to the text
        for probe in ("a", "1", "A."):  # a normalizer may remove all of one
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
    """Finds spellings of a transformers tokenizer's special tokens in texts, and encodes texts that contain them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        decoder = getattr(tokenizer, "added_tokens_decoder", {})  # without it, texts can't spell special tokens
        added = {token.content: (int(number), token) for number, token in decoder.items()}
        named = set(getattr(tokenizer, "all_special_tokens", ()))  # BOS, EOS, …, which files may not flag as special
        self.ids = {
            text: number for text, (number, token) in added.items() if text and (token.special or text in named)
        }
        """Spelling of each special token → its id."""
        self._ordinary = {text: number for text, (number, _) in added.items() if text and text not in self.ids}
        # Random, so that no document can contain a mark. Token ids don't depend on it.
        secret = secrets.token_hex(8)
        self._marks = {text: f"\ufdd0{secret}.{number}\ufdd1" for text, number in self.ids.items()}
        self._hidden = {text: f"\ufdd0{secret}-{number}\ufdd1" for text, number in self.ids.items()}
        self._names = {mark: text for marks in (self._marks, self._hidden) for text, mark in marks.items()}
        self._spelt = _any_of(self.ids)
        self._mark = re.compile(rf"\ufdd0{secret}\.\d+\ufdd1")
        self._hiding = re.compile(rf"\ufdd0{secret}-\d+\ufdd1")

    def spelt(self, text: str) -> Counter[str]:
        """How often a text spells each special token; marks don't count."""
        return Counter(self._spelt.findall(text))

    def is_spelt(self, text: str) -> bool:
        """Whether a text spells any special token."""
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
        """Encodes a text without adding special tokens.

        Args:
            text: The text. Marks in it become control tokens.
            parse: Whether spelt special tokens become control tokens too, as with the tokenizer itself.
            offsets: Whether to return the ends of tokens.

        Raises:
            LongEvalError: The tokenizer always reads a spelling as the control token.
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
        """Renders messages with a chat template, with marks in place of the template's own special tokens.

        Raises:
            ValueError: The template changes special tokens that a message spells.
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
        """A rendered prompt with marks replaced by the special tokens."""
        return self._mark.sub(lambda match: self._names[match[0]], text)

    def _encode(self, text: str, *, offsets: bool = False, **options: Any) -> Encoded:
        """Encodes a text with the tokenizer itself."""
        offsets = offsets and bool(getattr(self._tokenizer, "is_fast", False))
        encoded = self._tokenizer(
            text,
            add_special_tokens=False,
            truncation=False,
            padding=False,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            return_token_type_ids=False,
            # Avoids warnings about texts that are longer than the model's native length.
            verbose=False,
            **options,
        )
        ends_T = None
        if offsets:
            ends_T = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 1]
        return Encoded(list(encoded["input_ids"]), ends_T)

    @functools.cached_property
    def _plain(self) -> tuple[Any, dict[int, int]]:
        """A copy of a fast tokenizer whose special tokens are the marks, and a map from its ids to the true ids."""
        from tokenizers import Tokenizer

        copy = json.loads(self._tokenizer.backend_tokenizer.to_str())
        copy["truncation"] = copy["padding"] = None
        for token in copy["added_tokens"]:
            token["content"] = self._marks.get(token["content"], token["content"])
        _forget(copy["model"], {text: mark for text, mark in self._marks.items() if len(text) > 1})
        plain: Any = Tokenizer.from_str(json.dumps(copy))
        # The copy renumbers added tokens that aren't in the vocabulary.
        return plain, {plain.token_to_id(token["content"]): token["id"] for token in copy["added_tokens"]}

    def _by_parts(self, text: str) -> list[int]:
        """Token ids with a slow tokenizer: the text is split at added tokens, and the parts are encoded one by one."""
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
    """The note about texts of `what` that spell special tokens of a model; `found` counts how often each is spelt."""
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
    """A pattern that matches the longest of several texts, or nothing if there are none."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def _forget(model: dict[str, Any], marks: Mapping[str, str]) -> None:
    """Renames special tokens in the vocabulary of a model that would find them in a text without merges."""
    if model["type"] == "BPE":
        return
    if isinstance(model["vocab"], list):  # Unigram; sentencepiece gives control tokens a score of 0
        model["vocab"] = [[marks.get(piece, piece) if score == 0 else piece, score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {marks.get(piece, piece): number for piece, number in model["vocab"].items()}
        model["unk_token"] = marks.get(model["unk_token"], model["unk_token"])
