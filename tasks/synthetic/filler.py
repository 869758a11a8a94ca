"""Text that hides something: sentences of our own, or any documents, and where in it the hidden sentences go.

Kamradt (2023) hides a sentence in essays, RULER (arXiv 2404.06654) in repeated noise, essays or other needles. A place
is given by its depth: the share of the filler's characters that come before it, 0 at the start and 1 at the end.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longeval.data.sources import open_source
from longeval.errors import LongEvalError
from longeval.studies.tasks.setting import Setting

from .fitting import Budget, seeded

NOISE = "noise"
_CHARS_PER_TOKEN = 12
"""More than tokenizers put into a token on average: filler is laid in by this, before anything is counted."""
_PROBE_CHARS = 1500
_NEAR, ANYWHERE = 0.02, 0.1
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*(?=\s)|(?=\n)")
_PIECE = re.compile(r"\s*(?:[!-~]{1,16}|\S)")
"""The smallest amount of filler: a word, or one character of a script that puts no blanks between words."""

_WHO = (
    "The quiet river", "A grey cat", "The old bridge", "Our neighbour", "The morning wind", "A tired farmer",
    "The narrow path", "Every spring the meadow", "The baker", "A small boat", "The evening light", "The young teacher",
    "A flock of geese", "The stone wall", "The postman", "A light rain", "The apple tree", "My aunt", "The last bus",
    "A brown dog", "The village band", "The wide valley", "A patient gardener", "The early train",
)  # fmt: skip
_DOES = (
    "waits", "rests", "comes back", "looks the same", "turns slowly", "goes on", "takes its time", "stays away",
    "seems content", "keeps still", "can be seen", "is often late", "makes little noise", "is welcome", "slows down",
    "changes little", "starts again", "finds some shade", "is hard to miss", "moves along",
)  # fmt: skip
_WHERE = (
    "near the mill", "behind the church", "under a pale sky", "beside the road", "before noon", "in the warm hours",
    "at the edge of the wood", "after a long day", "on the other side", "between the hills", "when the market opens",
    "by the garden gate", "as it did last year", "without any hurry", "across the square", "around the corner",
    "until the bells ring", "along the shore", "in the thin fog", "close to the station",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Filler:
    """Text to hide something in, longer than any prompt takes."""

    text: str
    """The text."""
    period: int | None
    """Characters after which the documents start again; null where they don't have to."""
    digest: str
    """What it was made from."""
    close: str = ""
    """What ends a sentence that was cut off."""

    @functools.cached_property
    def sentence_ends(self) -> list[int]:
        """Places between sentences and between lines: each before a white space."""
        return sorted({0, *(match.end() for match in _SENTENCE_END.finditer(self.text))})

    @functools.cached_property
    def word_ends(self) -> list[int]:
        """Places after words."""
        return [0, *(match.end() for match in _PIECE.finditer(self.text))]

    def ladder(self, setting: Setting, budget: Budget) -> Sequence[int]:
        """Where the filler may end: with a sentence if they are short against what a prompt may miss, else anywhere."""
        ends = self.sentence_ends
        longest = max((after - before for before, after in itertools.pairwise(ends)), default=len(self.text))
        tokens = setting.measure(self.text[:_PROBE_CHARS]) * longest / min(_PROBE_CHARS, len(self.text))
        return ends if tokens <= budget.slack / 2 else self.word_ends

    def cut(self, end: int) -> str:
        """The first `end` characters, ended as a sentence where that is wanted."""
        text = self.text[:end]
        return text + self.close if text and not text.endswith(self.close) else text

    def repeats(self, end: int) -> int:
        """How often the documents start again within the first `end` characters."""
        return 0 if self.period is None or end == 0 else (end - 1) // self.period


class Hidden(NamedTuple):
    """A sentence to be hidden."""

    depth: float
    """Where, from 0 to 1."""
    text: str
    """The sentence."""
    tolerance: float = _NEAR
    """It is moved by at most this share of the filler to stand between two sentences; else it stands between words."""


def noise(task: str, setting: Setting) -> Filler:
    """Sentences of our own, drawn by the seed: the same for all samples, and at all lengths the same start."""
    rng = seeded(task, setting.seed, "filler")
    sentences, chars = [], 0
    while chars < setting.length * _CHARS_PER_TOKEN:
        sentences.append(f"{rng.choice(_WHO)} {rng.choice(_DOES)} {rng.choice(_WHERE)}.")
        chars += len(sentences[-1]) + 1
    return Filler(text=" ".join(sentences), period=None, digest=NOISE, close=".")


def haystack(task: str, setting: Setting) -> Filler:
    """The filler that the user chose: noise, or documents one after the other, from the first again if they run out.

    Raises:
        LongEvalError: If the documents can't be read (see `longeval.data.sources.open_source`), or hold no text.
    """
    if setting.haystack == NOISE:
        return noise(task, setting)
    wanted = setting.length * _CHARS_PER_TOKEN
    texts, chars = [], 0
    for document in open_source(setting.haystack).documents():
        texts.append(document.text.replace("\r\n", "\n").strip())
        chars += len(texts[-1]) + 2
        if chars >= wanted:
            break
    text = "\n\n".join(filter(None, texts))
    if not text:
        raise LongEvalError(f"--haystack {setting.haystack}: its documents hold no text", "Take another haystack.")
    text += "\n\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    if len(text) >= wanted:
        return Filler(text=text, period=None, digest=digest)
    return Filler(text=text * -(-wanted // len(text)), period=len(text), digest=digest)


def hide(filler: Filler, end: int, hidden: Sequence[Hidden]) -> str:
    """The filler's first `end` characters with sentences hidden in them at their depths; no filler is lost."""
    text = filler.cut(end)
    places = sorted((place(filler, text, sentence), number) for number, sentence in enumerate(hidden))
    parts, done = [], 0
    for where, number in places:
        parts.append(text[done:where])
        done = where
        sentence = hidden[number].text
        if where == 0:
            # The filler's first character is no blank, so one must come after the sentence instead of before it.
            parts.append(f"{sentence} ")
        else:
            parts.append(("\n" if text[where : where + 1] == "\n" else " ") + sentence)
    return ("".join(parts) + text[done:]).strip()


def place(filler: Filler, text: str, sentence: Hidden) -> int:
    """Where in `text`, the start of the filler, a sentence belongs: the end of a sentence or word, or 0."""
    if sentence.depth in (0, 1):
        return len(text) * int(sentence.depth)
    target = sentence.depth * len(text)
    for ends, tolerance in ((filler.sentence_ends, sentence.tolerance), (filler.word_ends, 1.0)):
        after = bisect.bisect_left(ends, target)
        near = [end for end in ends[max(after - 1, 0) : after + 1] if end <= len(text)]
        best = min(near, key=lambda end: abs(end - target), default=None)
        if best is not None and abs(best - target) <= tolerance * len(text):
            return best
    return len(text)
