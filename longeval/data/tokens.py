"""Tokenises documents and caches their tokens by content and tokenizer.

Special tokens are not added, because a BOS belongs to a window and not to a document. With the tokens, the number of
bytes of text that they cover is stored, which is needed for bits per byte.

Shapes: T tokens of a document.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from longeval.cache import read_sealed, write_sealed
from longeval.data.documents import Text
from longeval.data.special import special_tokens
from longeval.plain import canonical_json
from longeval.store.texts import data_digest, document_digest


class TokenTable(NamedTuple):
    """The tokens of one document."""

    tokens_T: npt.NDArray[np.int32]
    """Token ids without special tokens, shape (T,)."""
    byte_ends_T: npt.NDArray[np.int64] | None
    """UTF-8 bytes of the text up to the end of each token, shape (T,), non-decreasing; the last is the whole text. A
    range of tokens covers the difference of two entries. None if the tokenizer can't tell."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenisedDocument:
    """A tokenised document. Its arrays are in the cache and are read on demand."""

    name: str
    """The document's name."""
    digest: str
    """SHA-256 of the text and the tokenizer's digest. Documents with equal digests have equal tokens."""
    num_tokens: int
    """T, without special tokens."""
    path: str | None
    """The cache file; None if the arrays are in memory."""
    spelt: Mapping[str, int] = field(default_factory=dict)
    """How often the text spells each special token of the tokenizer."""
    held: TokenTable | None = field(default=None, repr=False)
    """The arrays, if the cache can't be written."""

    def load(self) -> TokenTable:
        """Reads the arrays; raises FileNotFoundError if the cache file has vanished or is damaged."""
        if self.held is not None:
            return self.held
        assert self.path is not None
        table = _read_table(self.path)
        if table is None:
            raise FileNotFoundError(f"cached tokens of {self.name} are gone: {self.path}")
        return table

    def tokens(self) -> npt.NDArray[np.int32]:
        """Returns the token ids, shape (T,); raises as `load` does."""
        return self.load().tokens_T

    def byte_ends(self) -> npt.NDArray[np.int64] | None:
        """Returns the byte ends, shape (T,), or None (see `TokenTable`); raises as `load` does."""
        return self.load().byte_ends_T


def tokenizer_digest(tokenizer: Any, files: Callable[[], str] = lambda: "") -> str:
    """SHA-256 (hex) of everything that determines how a transformers tokenizer splits a text.

    For a fast tokenizer this is its serialised form, without truncation and padding, which earlier calls may have set.
    A slow tokenizer, or one whose class comes with the model, can't be serialised; `files` returns the identity of its
    files.
    """
    fast, own_class = getattr(tokenizer, "is_fast", False), not type(tokenizer).__module__.startswith("transformers.")
    if fast and not own_class:
        plain = json.loads(tokenizer.backend_tokenizer.to_str())
        plain.pop("truncation", None)
        plain.pop("padding", None)
    else:
        plain = {
            "files": files(),
            "class": type(tokenizer).__qualname__,
            "vocabulary": tokenizer.get_vocab(),
            "added": {str(token): number for number, token in tokenizer.added_tokens_decoder.items()},
        }
    return hashlib.sha256(canonical_json(plain).encode()).hexdigest()


def tokenise(
    document: Text, tokenizer: Any, tokenizer_digest: str, cache: str | None, *, parse_special: bool = False
) -> TokenisedDocument:
    """Tokenises a document, or reads its tokens from the cache.

    Args:
        document: The document.
        tokenizer: A transformers tokenizer.
        tokenizer_digest: Its `tokenizer_digest`, which is too slow to compute for each document.
        cache: The cache folder (see `longeval.cache.cache_dir`). If it is None or can't be written, the arrays stay in
            memory.
        parse_special: Whether special tokens that the text spells are control tokens.
    """
    special = special_tokens(tokenizer)
    spelt = special.spelt(document.text)
    digest = document_digest(document.text, tokenizer_digest, as_text=bool(spelt) and not parse_special)
    path = None if cache is None else os.path.join(cache, "tokens", digest[:2], f"{digest}.tokens")
    table = None if path is None else _read_table(path)
    if table is None:
        encoded = special.encode(document.text, parse=parse_special, offsets=True)
        byte_ends_T = None if encoded.ends_T is None else _byte_ends(document.text, encoded.ends_T)
        table = TokenTable(np.asarray(encoded.ids, dtype=np.int32), byte_ends_T)
        if path is not None and not write_sealed(path, _to_bytes(table)):
            path = None
    return TokenisedDocument(
        name=document.name,
        digest=digest,
        num_tokens=len(table.tokens_T),
        path=path,
        spelt=spelt,
        held=table if path is None else None,
    )


def _byte_ends(text: str, char_ends_T: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Computes byte ends from the ends in characters.

    If several tokens form one character, all end behind it, so the first of them covers its bytes. For tokens of white
    space or without text, tokenizers may give smaller ends than before, such as 0; then the largest end so far is used.
    The last token always ends with the text, even if the tokenizer drops the rest.
    """
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    bytes_before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(widths)])
    ends_T: npt.NDArray[np.int64] = bytes_before[np.maximum.accumulate(char_ends_T)]
    if len(ends_T):
        ends_T[-1] = bytes_before[-1]
    return ends_T


def _to_bytes(table: TokenTable) -> bytes:
    """The content of a cache file. Byte ends are stored as differences, which compress well."""
    arrays: dict[str, npt.NDArray[Any]] = {"tokens": table.tokens_T.astype("<i4")}
    if table.byte_ends_T is not None:
        arrays["bytes"] = np.diff(table.byte_ends_T, prepend=0).astype("<i4")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _read_table(path: str) -> TokenTable | None:
    """Reads a cache file; None if there is none or it is damaged."""
    content = read_sealed(path)
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        bytes_T = arrays.get("bytes")
        return TokenTable(arrays["tokens"], None if bytes_T is None else np.cumsum(bytes_T, dtype=np.int64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """The documents of one data set that were chosen for one model."""

    documents: tuple[TokenisedDocument, ...]
    """The chosen documents, in the source's order."""
    skipped: int
    """Documents that were looked at and have fewer tokens than asked for, records without text among them."""
    without_text: int
    """Records without text."""
    longest_tokens: int
    """Tokens of the longest document that was read."""
    identical: int
    """Number of chosen documents that repeat the text of an earlier one."""
    digest: str
    """SHA-256 over the chosen documents' digests (text and tokenizer)."""

    @property
    def spelt(self) -> Counter[str]:
        """How often the chosen documents spell each special token of the tokenizer."""
        return sum((Counter(document.spelt) for document in self.documents), Counter())

    @property
    def lengths(self) -> list[int]:
        """Tokens of each chosen document, without BOS."""
        return [document.num_tokens for document in self.documents]


def select(
    documents: Iterable[Text],
    tokenise: Callable[[Text], TokenisedDocument],
    *,
    min_tokens: int,
    docs: int | Literal["all"],
) -> Selection:
    """Chooses the first `docs` documents with at least `min_tokens` tokens, and reads no more than needed."""
    assert min_tokens > 0
    chosen: list[TokenisedDocument] = []
    skipped = without_text = longest = 0
    for document in documents:
        without_text += document.missing
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
        without_text=without_text,
        longest_tokens=longest,
        identical=len(digests) - len(set(digests)),
        digest=data_digest(digests),
    )
