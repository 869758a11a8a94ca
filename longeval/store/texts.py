"""The texts of a data set as one tokenizer splits them: what pages about single tokens need beside token NLLs.

    RUN/texts/<data digest>.npz   names, texts and token ends of the documents that cells with this `data_digest` score

They are kept once for all methods and lengths, and only where that was asked for (`--keep-text`). The name of the file
is a digest of its texts and of the tokenizer, so a reader knows that a text is the one that was scored.

Shapes: D documents, T tokens of one document.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from longeval.store.nll import TokenNll, arrays_from_npz, document_names, npz_bytes

FOLDER = "texts"
"""The folder in a run folder."""

MOST_BYTES = 64 << 20
"""Most bytes of text that a command keeps, UTF-8; the first documents are kept."""

_TOKENS = "tokens-1"
"""Part of every digest of a document. Change it when the meaning of tokens and their byte ends changes."""

_FORMS = {"names": "U", "digests": "U", "tokenizer": "U", "bytes": "<i8", "text": "|u1", "tokens": "<i8", "ends": "<i4"}
"""Arrays of the file and their dtypes (`U`: text of any width)."""


def document_digest(text: str, tokenizer: str, *, as_text: bool) -> str:
    """SHA-256 (hex) of everything that decides a document's tokens.

    Args:
        text: The document's text.
        tokenizer: The digest of the tokenizer.
        as_text: Whether the text spells special tokens, and they are read as text.
    """
    way = "as-text\0" if as_text else ""
    return hashlib.sha256(f"{_TOKENS}\0{tokenizer}\0{way}{text}".encode()).hexdigest()


def data_digest(digests: Sequence[str]) -> str:
    """SHA-256 (hex) over the digests of a data set's documents; records have it as `data_digest`."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DocumentTexts:
    """The documents of a data set, of which the first have their texts."""

    names: tuple[str, ...]
    """Names of all D documents, as token NLLs have them."""
    digests: tuple[str, ...]
    """`document_digest` of each."""
    tokenizer: str
    """The digest of the tokenizer."""
    texts: tuple[str, ...]
    """Texts of the first documents; as many as are kept."""
    ends: tuple[npt.NDArray[np.int64], ...]
    """Of each of these, the UTF-8 bytes of its text up to the end of each token, shape (T,), non-decreasing."""

    @property
    def digest(self) -> str:
        """The data set's digest."""
        return data_digest(self.digests)

    def to_bytes(self) -> bytes:
        """The content of the `.npz` file."""
        encoded = [text.encode() for text in self.texts]
        ends = [np.diff(ends_T, prepend=0) for ends_T in self.ends]
        return npz_bytes(
            {
                "names": np.array(self.names, dtype=np.str_),
                "digests": np.array(self.digests, dtype=np.str_),
                "tokenizer": np.array([self.tokenizer], dtype=np.str_),
                "bytes": np.array([len(text) for text in encoded], dtype="<i8"),
                "text": np.frombuffer(b"".join(encoded), dtype=np.uint8),
                "tokens": np.array([len(ends_T) for ends_T in self.ends], dtype="<i8"),
                "ends": np.concatenate([np.zeros(0, dtype="<i4"), *ends]).astype("<i4"),
            }
        )

    def check(self, nll: TokenNll) -> None:
        """Raises ValueError if token NLLs are of other documents, or if their windows cover other bytes."""
        if nll.documents != self.names:
            raise ValueError("the token values are of other documents")
        for document, start, tokens, num_bytes in zip(
            nll.document_W.tolist(), nll.start_W.tolist(), nll.tokens_W.tolist(), nll.bytes_W.tolist(), strict=True
        ):
            if document >= len(self.texts):
                continue
            ends_T = self.ends[document]
            if start + tokens > len(ends_T):
                raise ValueError(f"{self.names[document]} has fewer tokens than were scored")
            covered = int(ends_T[start + tokens - 1]) - (int(ends_T[start - 1]) if start else 0)
            if num_bytes not in (-1, covered):
                raise ValueError(
                    f"the tokens of {self.names[document]} end at other places than those that were scored"
                )


def path_of(digest: object) -> str | None:
    """The path inside a run folder of the texts with this digest; None where it is no digest."""
    return f"{FOLDER}/{digest}.npz" if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None


def texts_from_bytes(content: bytes, digest: str) -> DocumentTexts:
    """Inverse of `DocumentTexts.to_bytes`; raises ValueError for any other content, and for texts of another digest."""
    arrays = arrays_from_npz(content, _FORMS, "text")
    bytes_D, tokens_D = arrays["bytes"], arrays["tokens"]
    if len(bytes_D) != len(tokens_D) or (bytes_D < 0).any() or (tokens_D < 0).any() or len(arrays["tokenizer"]) != 1:
        raise ValueError("its arrays by document differ in length")
    if bytes_D.sum() != len(arrays["text"]) or tokens_D.sum() != len(arrays["ends"]) or (arrays["ends"] < 0).any():
        raise ValueError("its texts or tokens are not as many as it counts")
    found = DocumentTexts(
        names=document_names(arrays["names"]),
        digests=document_names(arrays["digests"]),
        tokenizer=str(arrays["tokenizer"][0]),
        texts=tuple(
            part.tobytes().decode() for part in np.split(arrays["text"], np.cumsum(bytes_D)[:-1])[: len(bytes_D)]
        ),
        ends=tuple(
            np.cumsum(part, dtype=np.int64)
            for part in np.split(arrays["ends"], np.cumsum(tokens_D)[:-1])[: len(tokens_D)]
        ),
    )
    _check(found, digest)
    return found


def _check(found: DocumentTexts, digest: str) -> None:
    """Raises ValueError unless every text is the one that the digest speaks of."""
    if found.digest != digest or not len(found.names) == len(found.digests) >= len(found.texts):
        raise ValueError("it is of other documents than its name says")
    for name, text, own, ends_T in zip(found.names, found.texts, found.digests, found.ends, strict=False):
        if own not in {document_digest(text, found.tokenizer, as_text=way) for way in (False, True)}:
            raise ValueError(f"the text of {name} is another one than was scored")
        if len(ends_T) and ends_T[-1] != len(text.encode()):
            raise ValueError(f"the tokens of {name} don't end where its text ends")
