"""Which documents of a source a request uses: long enough, and at most so many; the others are counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from longeval.data.documents import Text
from longeval.data.tokens import TokenisedDocument


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The documents of one data set, as tokenised for one model."""

    documents: tuple[TokenisedDocument, ...]
    """The chosen ones, in the source's order."""
    skipped: int
    """Documents that were looked at and have fewer tokens than asked for."""
    longest_tokens: int
    """Tokens of the longest document that was looked at."""
    identical: int
    """How many of the chosen documents repeat an earlier one's text."""
    digest: str
    """SHA-256 over the chosen documents' digests (text and tokenizer)."""

    @property
    def spelt(self) -> Counter[str]:
        """How often the chosen documents spell each special token of the tokenizer."""
        return sum((Counter(document.spelt) for document in self.documents), Counter())

    @property
    def lengths(self) -> list[int]:
        """Tokens of each chosen document, BOS not counted."""
        return [document.num_tokens for document in self.documents]


def select(
    documents: Iterable[Text],
    tokenise: Callable[[Text], TokenisedDocument],
    *,
    min_tokens: int,
    docs: int | Literal["all"],
) -> Selection:
    """Takes documents of at least `min_tokens` tokens in order until `docs` are found; reads no further than that."""
    chosen: list[TokenisedDocument] = []
    skipped = longest = 0
    for document in documents:
        tokenised = tokenise(document)
        longest = max(longest, tokenised.num_tokens)
        if tokenised.num_tokens < min_tokens:
            skipped += 1
            continue
        chosen.append(tokenised)
        if len(chosen) == docs:
            break
    digests = [document.digest for document in chosen]
    return Selection(
        documents=tuple(chosen),
        skipped=skipped,
        longest_tokens=longest,
        identical=len(digests) - len(set(digests)),
        digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
    )
