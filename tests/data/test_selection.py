"""Which documents are chosen: the limits belong to the right side, and nothing is read that isn't needed."""

from __future__ import annotations

import numpy as np

from longeval.data.documents import Text
from longeval.data.tokens import TokenisedDocument, TokenTable, select


def tokenise(document):
    num_tokens = len(document.text)
    table = TokenTable(np.zeros(num_tokens, dtype=np.int32), None)
    return TokenisedDocument(name=document.name, digest=document.text, num_tokens=num_tokens, path=None, held=table)


def documents(*lengths):
    return [Text(name=str(index), text="x" * length) for index, length in enumerate(lengths)]


def test_documents_of_exactly_the_least_length_are_taken():
    found = select(documents(9, 10, 11, 3), tokenise, min_tokens=10, docs="all")
    assert found.lengths == [10, 11]
    assert (found.skipped, found.longest_tokens, found.identical) == (2, 11, 0)


def test_reading_stops_when_enough_are_found():
    read = []

    def source():
        for document in documents(5, 20, 20, 30):
            read.append(document.name)
            yield document

    found = select(source(), tokenise, min_tokens=10, docs=2)
    assert (found.lengths, found.skipped, read) == ([20, 20], 1, ["0", "1", "2"])
    assert found.identical == 1


def test_the_digest_is_of_the_chosen_texts_in_order():
    digests = {
        select(documents(*lengths), tokenise, min_tokens=2, docs="all").digest for lengths in ((3, 4), (4, 3), (3,))
    }
    assert len(digests) == 3
    short_one_too = select(documents(1, 3, 4), tokenise, min_tokens=2, docs="all").digest
    assert short_one_too == select(documents(3, 4), tokenise, min_tokens=2, docs="all").digest
