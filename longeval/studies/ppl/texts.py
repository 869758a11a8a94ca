"""Which texts a run folder keeps beside its cells (`--keep-text`), for pages that show documents token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from longeval.data.documents import Text
from longeval.data.sources import Source
from longeval.data.tokens import Selection
from longeval.store.folder import Store
from longeval.store.texts import MOST_BYTES, DocumentTexts
from longeval.studies.ppl.request import PplRequest


class Kept(NamedTuple):
    """The texts of one data set that are to be kept."""

    tokenizer: str
    """The digest of the tokenizer."""
    selection: Selection
    texts: Mapping[str, Text]
    """Digest of a document → its text."""
    most: int
    """Most bytes of text."""


def is_kept(request: PplRequest, source: Source) -> bool:
    """Whether the texts of a source are kept: as asked, by default those of this machine.

    Texts of the hub are left out by default, since their licences differ and anyone can get them there.
    """
    return source.is_local if request.keep_text is None else request.keep_text


def room_of(request: PplRequest, sources: Sequence[Source]) -> int:
    """Most bytes of text of each data set and model, so that all of them together are within `MOST_BYTES`."""
    return MOST_BYTES // max(1, len(request.model) * sum(is_kept(request, source) for source in sources))


def keep_texts(kept: Sequence[Kept], store: Store) -> None:
    """Writes texts into a run folder, of each data set the first documents that there is room for."""
    for one in kept:
        documents = one.selection.documents
        texts, ends = [], []
        for document in documents[: num_kept(one)]:
            try:
                ends_T = document.byte_ends()
            except OSError:  # its tokens went away, which fails the cells that need them
                break
            if ends_T is None:  # the tokenizer doesn't say where tokens lie
                break
            texts.append(one.texts[document.digest].text)
            ends.append(ends_T)
        if texts:
            store.save_texts(
                DocumentTexts(
                    names=tuple(document.name for document in documents),
                    digests=tuple(document.digest for document in documents),
                    tokenizer=one.tokenizer,
                    texts=tuple(texts),
                    ends=tuple(ends),
                )
            )


def num_kept(kept: Kept) -> int:
    """Number of first documents that there is room for."""
    used = 0
    for number, document in enumerate(kept.selection.documents):
        text = kept.texts.get(document.digest)
        used += 0 if text is None else len(text.text.encode())
        if text is None or used > kept.most:
            return number
    return len(kept.selection.documents)


def kept_notes(kept: Kept, data: str) -> list[str]:
    """What a user should know of texts that are not kept."""
    number, of = num_kept(kept), len(kept.selection.documents)
    if number == of:
        return []
    return [
        f"{data}: the run folder keeps the text of {number} of {of} documents, since there is room for "
        f"{kept.most / (1 << 20):.3g} MiB; the page of the report can't show the others"
    ]
