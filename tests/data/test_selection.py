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
    source = iter(documents(5, 20, 20, 30, 30))
    found = select(source, tokenise, min_tokens=10, docs=2)
    assert (found.lengths, found.skipped, found.identical) == ([20, 20], 1, 1)
    assert [document.name for document in source] == ["3", "4"]


def test_records_without_text_are_skipped_and_counted():
    source = [Text.of_record("a", None), *documents(20, 5), Text.of_record("b", None), *documents(20)]
    found = select(source, tokenise, min_tokens=10, docs=1)
    assert (found.lengths, found.skipped, found.without_text) == ([20], 1, 1)  # those before the last one that is read
    found = select(source, tokenise, min_tokens=10, docs="all")
    assert (found.lengths, found.skipped, found.without_text) == ([20, 20], 3, 2)


def test_the_digest_is_of_the_chosen_texts_in_order():
    def digest(*lengths):
        return select(documents(*lengths), tokenise, min_tokens=2, docs="all").digest

    assert len({digest(3, 4), digest(4, 3), digest(3)}) == 3
    assert digest(1, 3, 4) == digest(3, 4)
