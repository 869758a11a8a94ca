"""Key tokens of LongPPL, the tokens that need a long context, as one named evaluator model tells them.

Fang et al. 2024 (arXiv 2410.23771): a token is a key token if the evaluator predicts it much better with a long context
than with a short one, and well with the long one. Two artefacts are kept:

- `Keys` of the evaluator's cell: both NLLs of each of its tokens, and where the token ends in the text. Key tokens
  under any α and β follow from them without the evaluator.
- `KeyNll` of a LongPPL cell: the token NLLs of the evaluated model, with a mask of its key tokens.

Tokenizers may differ, so key tokens of the evaluator become spans of UTF-8 bytes. A token of the evaluated model is a
key token if it lies wholly inside a span. Tokens that are parts of one character count as the whole character.

Shapes: D documents, S scored tokens (those of document 0, then of document 1, …), T tokens of one document, N spans.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longeval.store.artefact import ARTEFACTS, Artefact, check_count, check_value
from longeval.store.nll import (
    FORMS,
    LARGEST_EXPONENT,
    LATER,
    LEAST_NLL,
    TokenNll,
    arrays_from_npz,
    check_context,
    document_names,
    npz_bytes,
    token_nll_of,
)
from longeval.store.records import Record

ALPHA = 2.0
"""Published threshold of a token's gain by the long context, nats."""
BETA = -2.0
"""Published threshold of a token's log-probability with the long context, nats."""

_FORMS = {
    "nll_long": "<f4",
    "nll_short": "<f4",
    "ends": "<i8",
    "tokens": "<i4",
    "first": "<i8",
    "documents": "U",
}
"""Arrays of the file of `Keys` and their dtypes (`U`: text of any width)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Keys:
    """What the evaluator says of each document."""

    nll_long_S: npt.NDArray[np.float32]
    """NLL of each scored token given the whole text before it, nats, shape (S,)."""
    nll_short_S: npt.NDArray[np.float32]
    """NLL given the short context, nats, shape (S,); equal to the other where the text before it is no longer."""
    ends_S: npt.NDArray[np.int64]
    """UTF-8 bytes of the document up to the end of each scored token, shape (S,)."""
    tokens_D: npt.NDArray[np.int32]
    """Number of scored tokens of each document, shape (D,); sums to S."""
    first_D: npt.NDArray[np.int64]
    """UTF-8 bytes of each document before its first scored token, shape (D,)."""
    documents: tuple[str, ...]
    """Names of the documents."""

    def __post_init__(self) -> None:
        if not len(self.nll_long_S) == len(self.nll_short_S) == len(self.ends_S) == int(self.tokens_D.sum()):
            raise ValueError("its arrays by token differ in length")
        if not len(self.tokens_D) == len(self.first_D) == len(self.documents):
            raise ValueError("its arrays by document differ in length")

    def is_key_S(self, alpha: float = ALPHA, beta: float = BETA) -> npt.NDArray[np.bool_]:
        """Whether each scored token is a key token, shape (S,).

        Fang et al. 2024: log p(long) − log p(short) > α and log p(long) > β, both in nats.
        """
        long_S, short_S = self.nll_long_S.astype(np.float64), self.nll_short_S.astype(np.float64)
        is_key_S: npt.NDArray[np.bool_] = (short_S - long_S > alpha) & (long_S < -beta)
        return is_key_S

    def spans(self, alpha: float = ALPHA, beta: float = BETA) -> list[npt.NDArray[np.int64]]:
        """The key tokens of each document as spans of bytes, [start, end), ascending, each of shape (N, 2).

        Spans that touch are one.
        """
        is_key_S, stops_D, found = self.is_key_S(alpha, beta), np.cumsum(self.tokens_D), []
        for first, count, stop in zip(self.first_D, self.tokens_D, stops_D, strict=True):
            own = slice(int(stop) - int(count), int(stop))
            ends_T, is_key_T = self.ends_S[own], is_key_S[own]
            found.append(_merged(byte_starts(ends_T, int(first))[is_key_T], ends_T[is_key_T]))
        return found

    def to_bytes(self) -> bytes:
        """The content of the `.npz` file."""
        return npz_bytes(
            {
                "nll_long": self.nll_long_S.astype("<f4"),
                "nll_short": self.nll_short_S.astype("<f4"),
                "ends": self.ends_S.astype("<i8"),
                "tokens": self.tokens_D.astype("<i4"),
                "first": self.first_D.astype("<i8"),
                "documents": np.array(self.documents, dtype=np.str_),
            }
        )


def byte_starts(ends_T: npt.NDArray[np.int64], first: int = 0) -> npt.NDArray[np.int64]:
    """Where tokens start in the text, shape (T,), from where they end.

    Several tokens that are parts of one character all end behind it (see `TokenTable`). Each of them gets the start of
    that character, as the offsets of tokenizers say it.

    Args:
        ends_T: Byte ends, non-decreasing.
        first: Bytes before the first token, or before the character that it is a part of.
    """
    before_T = np.concatenate([np.array([first], dtype=np.int64), ends_T[:-1]])[: len(ends_T)]
    # The last token at or before each one that covers bytes; without one, tokens lie at `first` and cover nothing.
    covers_T = np.maximum.accumulate(np.where(ends_T > before_T, np.arange(len(ends_T)), 0))
    starts_T: npt.NDArray[np.int64] = before_T[covers_T]
    return starts_T


def _merged(starts_T: npt.NDArray[np.int64], ends_T: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Spans that touch or overlap as one, shape (N, 2). Both arguments are non-decreasing; empty spans are left out."""
    covers = ends_T > starts_T
    starts_T, ends_T = starts_T[covers], ends_T[covers]
    if not len(starts_T):
        return np.zeros((0, 2), dtype=np.int64)
    begins_T = np.concatenate([[True], starts_T[1:] > ends_T[:-1]])
    (index_N,) = np.nonzero(begins_T)
    last_N = np.concatenate([index_N[1:], [len(starts_T)]]) - 1
    return np.stack([starts_T[index_N], ends_T[last_N]], axis=1)


def inside(spans: npt.NDArray[np.int64], ends_T: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether each token of a document lies wholly inside one of the spans, shape (T,).

    Args:
        spans: Of the document, as `Keys.spans` gives them.
        ends_T: Byte ends of all its tokens, under any tokenizer.
    """
    starts_T = byte_starts(ends_T)
    if not len(spans):
        return np.zeros(len(ends_T), dtype=np.bool_)
    place_T = np.searchsorted(spans[:, 0], starts_T, side="right") - 1
    is_inside_T: npt.NDArray[np.bool_] = (place_T >= 0) & (ends_T <= spans[place_T, 1]) & (ends_T > starts_T)
    return is_inside_T


def spans_digest(spans: Sequence[npt.NDArray[np.int64]]) -> str:
    """SHA-256 (hex) of the spans of all documents. Masks with equal digests are equal."""
    digest = hashlib.sha256()
    for one in spans:
        digest.update(f"{len(one)}\0".encode() + np.ascontiguousarray(one, dtype="<i8").tobytes())
    return digest.hexdigest()


def keys_from_bytes(content: bytes) -> Keys:
    """Inverse of `Keys.to_bytes`; raises ValueError for any other content. Never unpickles."""
    arrays = arrays_from_npz(content, _FORMS, "key token")
    keys = Keys(
        nll_long_S=arrays["nll_long"],
        nll_short_S=arrays["nll_short"],
        ends_S=arrays["ends"],
        tokens_D=arrays["tokens"],
        first_D=arrays["first"],
        documents=document_names(arrays["documents"]),
    )
    for nll_S in (keys.nll_long_S, keys.nll_short_S):
        if not np.isfinite(nll_S).all():
            raise ValueError("a token's value is not finite")
        if len(nll_S) and nll_S.min() < LEAST_NLL:
            raise ValueError("a token's NLL is negative")
    if (keys.tokens_D < 0).any() or (keys.first_D < 0).any():
        raise ValueError("a document has fewer than no tokens, or begins before its text")
    for first, ends_T in zip(keys.first_D, np.split(keys.ends_S, np.cumsum(keys.tokens_D)[:-1]), strict=True):
        if (np.diff(ends_T, prepend=first) < 0).any():
            raise ValueError("a token ends before the one in front of it")
    return keys


def _check_keys(keys: Keys, records: Sequence[Record]) -> None:
    """Raises ValueError with the reason if records count other tokens or documents than there are."""
    if not len(keys.nll_long_S):
        raise ValueError("no token is scored")
    for record in records:
        check_count(record.n, len(keys.documents), "documents")
        check_count(record.documents, len(keys.documents), "documents")
        check_count(record.tokens, len(keys.nll_long_S), "tokens")
        check_value(record.nll_sum, float(keys.nll_long_S.sum(dtype="f8")), "nll_sum")


KEYS = ARTEFACTS.register(
    "keys",
    Artefact(folder="keys", suffix="npz", encode=Keys.to_bytes, decode=keys_from_bytes, check=_check_keys),
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeyNll:
    """The scored tokens of a perplexity cell, with a mask of the key tokens."""

    nll: TokenNll
    """All scored tokens, S of them."""
    key_S: npt.NDArray[np.bool_]
    """Whether each of them is a key token, shape (S,)."""

    def __post_init__(self) -> None:
        if len(self.key_S) != len(self.nll.nll_S):
            raise ValueError("its mask is not as long as its values")

    @property
    def num_keys(self) -> int:
        """Number of key tokens."""
        return int(self.key_S.sum())

    @property
    def num_documents(self) -> int:
        """Number of documents that have a key token."""
        document_S = np.repeat(self.nll.document_W, self.nll.tokens_W)
        return len(np.unique(document_S[self.key_S]))

    def mean(self) -> float:
        """Mean NLL of the key tokens in nats, float64; LongPPL is its exp.

        Raises:
            ValueError: There is no key token.
        """
        if not self.key_S.any():
            raise ValueError("it has no key token")
        return float(self.nll.nll_S[self.key_S].mean(dtype=np.float64))

    def to_bytes(self) -> bytes:
        """The content of the `.npz` file."""
        return npz_bytes(self.nll.arrays() | {"key": self.key_S})


def key_nll_from_bytes(content: bytes) -> KeyNll:
    """Inverse of `KeyNll.to_bytes`; raises ValueError for any other content. Never unpickles."""
    arrays = arrays_from_npz(content, FORMS | {"key": "|b1"}, "LongPPL", LATER)
    return KeyNll(nll=token_nll_of(arrays), key_S=arrays["key"])


def _check_key_nll(found: KeyNll, records: Sequence[Record]) -> None:
    """Raises ValueError with the reason if records count other windows, key tokens or documents than there are."""
    if not found.num_keys:
        raise ValueError("it has no key token")
    for record in records:
        check_count(record.n, len(found.nll.tokens_W), "windows")
        check_count(record.tokens, found.num_keys, "key tokens")
        check_count(record.documents, found.num_documents, "documents with key tokens")
        check_value(record.nll_sum, float(found.nll.nll_S[found.key_S].sum(dtype="f8")), "nll_sum")
        check_context(found.nll, record)


KEY_NLL = ARTEFACTS.register(
    "key_nll",
    Artefact(
        folder="key_nll",
        suffix="npz",
        encode=KeyNll.to_bytes,
        decode=key_nll_from_bytes,
        check=_check_key_nll,
        values={"long_ppl": lambda found, _: math.exp(min(found.mean(), LARGEST_EXPONENT))},
    ),
)
