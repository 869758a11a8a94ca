"""Texts in a run folder: what is written is read back exactly, and anything else is refused."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from records import make_nll

from longeval.errors import LongEvalError
from longeval.store.folder import Store
from longeval.store.texts import DocumentTexts, document_digest, path_of, texts_from_bytes

TEXTS = ("a\r\nb 🎉 e\u0301", "שלום", "")
ENDS = ([1, 3, 5, 9, 9, 9, 9, 10, 13], [2, 4, 8], [])


def make_texts(texts=TEXTS, ends=ENDS, kept=3, names=("a", "b", "c")):
    return DocumentTexts(
        names=tuple(names),
        digests=tuple(document_digest(text, "t", as_text=number == 1) for number, text in enumerate(texts)),
        tokenizer="t",
        texts=tuple(texts[:kept]),
        ends=tuple(np.array(ends_T, dtype=np.int64) for ends_T in ends[:kept]),
    )


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_what_is_written_is_read_back_exactly(store, kept):
    texts = make_texts(kept=kept)
    store.save_texts(texts)
    found = store.texts(texts.digest)
    assert (found.names, found.digests, found.texts) == (("a", "b", "c"), texts.digests, TEXTS[:kept])
    assert [ends_T.tolist() for ends_T in found.ends] == [*ENDS[:kept]]


def test_texts_of_another_digest_or_with_another_letter_are_refused(store):
    texts = make_texts()
    with pytest.raises(ValueError, match="other documents"):
        texts_from_bytes(texts.to_bytes(), "0" * 64)
    other = DocumentTexts(
        names=texts.names, digests=texts.digests, tokenizer="t", texts=("A" + TEXTS[0][1:], *TEXTS[1:]), ends=texts.ends
    )
    assert other.digest == texts.digest
    with pytest.raises(ValueError, match="the text of a"):
        texts_from_bytes(other.to_bytes(), texts.digest)
    short = make_texts(ends=([1], *ENDS[1:]))
    with pytest.raises(ValueError, match="where its text ends"):
        texts_from_bytes(short.to_bytes(), texts.digest)


def test_damaged_texts_are_told_and_written_again(store):
    texts = make_texts()
    store.save_texts(texts)
    path = store.local_path(path_of(texts.digest))
    content = texts.to_bytes()
    for damaged in (b"", content[:-30], b"nothing", content.replace(zipfile.stringFileHeader, b"XXXX", 1)):
        with open(path, "wb") as file:
            file.write(damaged)
        with pytest.raises(LongEvalError, match="--keep-text"):
            store.texts(texts.digest)
        store.save_texts(texts)
        assert store.texts(texts.digest).texts == TEXTS


def test_more_texts_replace_fewer_and_not_the_other_way_round(store):
    for kept, there in ((1, 1), (3, 3), (2, 3)):
        store.save_texts(make_texts(kept=kept))
        assert len(store.texts(make_texts().digest).texts) == there


@pytest.mark.parametrize("digest", [None, 3, "", "../spec", "d" * 63, "D" * 64])
def test_only_a_digest_names_a_file(store, digest):
    assert store.texts(digest) is None


def test_token_values_must_be_of_the_same_documents_and_bytes():
    texts = make_texts()
    good = make_nll([[1.0] * 8, [1.0]], documents=[0, 1], starts=[1, 2], names=("a", "b", "c"), num_bytes=-1)
    texts.check(good)
    texts.check(make_nll([[1.0, 1.0]], starts=[1], names=("a", "b", "c"), num_bytes=2))
    for wrong in (
        make_nll([[1.0]], names=("a", "b")),
        make_nll([[1.0] * 9], names=("a", "b", "c"), num_bytes=-1),
        make_nll([[1.0, 1.0]], starts=[2], names=("a", "b", "c"), num_bytes=2),
    ):
        with pytest.raises(ValueError, match=r"other|fewer"):
            texts.check(wrong)


def test_texts_in_object_storage(s3_bucket):
    texts = make_texts()
    Store(f"{s3_bucket}/run").save_texts(texts)
    assert Store(f"{s3_bucket}/run").texts(texts.digest).texts == TEXTS
    assert Store(f"{s3_bucket}/run").texts("0" * 64) is None
