"""Key tokens: spans of text, masks under other tokenizers against loops over characters, and strict reading."""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_store import nll

from longeval.data.tokens import _byte_ends
from longeval.store.keys import (
    KeyNll,
    Keys,
    byte_starts,
    inside,
    key_nll_from_bytes,
    keys_from_bytes,
    spans_digest,
)


def keys(**changes):
    fields = {
        "nll_long_S": np.array([1.0, 0.5, 3.0, 0.25], dtype=np.float32),
        "nll_short_S": np.array([3.5, 0.5, 9.0, 4.25], dtype=np.float32),
        "ends_S": np.array([2, 5, 9, 4], dtype=np.int64),
        "tokens_D": np.array([3, 1], dtype=np.int32),
        "first_D": np.array([1, 0], dtype=np.int64),
        "documents": ("a", "b"),
    }
    return Keys(**(fields | changes))


def test_a_key_token_gains_more_than_alpha_and_is_more_likely_than_beta():
    found = keys()
    assert found.is_key_S().tolist() == [True, False, False, True]  # the third gains 6 nats, and costs 3 with all text
    assert found.is_key_S(alpha=2.5).tolist() == [False, False, False, True]  # more than, not as much as
    assert found.is_key_S(beta=-3.5).tolist() == [True, False, True, True]
    assert found.is_key_S(beta=-0.25).tolist() == [False] * 4


def test_spans_are_of_each_document_and_those_that_touch_are_one():
    first, second = keys().spans()
    assert first.tolist() == [[1, 2]] and second.tolist() == [[0, 4]]
    assert keys().spans(alpha=-1, beta=-1e9)[0].tolist() == [[1, 9]]
    assert [one.tolist() for one in keys().spans(alpha=100)] == [[], []]


def test_the_digest_tells_to_which_document_a_span_belongs():
    none, one = np.zeros((0, 2), dtype=np.int64), np.array([[1, 2]])
    assert spans_digest([none, one]) != spans_digest([one, none]) == spans_digest([one.copy(), none])


@st.composite
def text_and_two_tokenisations(draw):
    """A text, and twice the ends in characters of tokens that cover it; some characters have several tokens."""
    text = draw(st.text(alphabet="ab é€𝄞 ", min_size=1, max_size=30))

    def tokens():
        cuts = sorted(draw(st.sets(st.integers(1, len(text)), max_size=len(text))) | {len(text)})
        ends = []
        for before, cut in zip([0, *cuts], cuts, strict=False):
            parts = draw(st.integers(1, 3)) if cut - before == 1 else 1  # the bytes of one character
            ends += [cut] * parts
        return ends

    return text, tokens(), tokens()


def characters(ends):
    """The characters of each token: parts of one character have it whole."""
    found, before, last = [], 0, 0
    for end in ends:
        if end > last:
            before, last = last, end
        found.append(range(before, end))
    return found


@given(text_and_two_tokenisations(), st.data())
def test_masks_are_those_of_a_loop_over_characters(case, data):
    text, of_evaluator, of_model = case
    is_key = [data.draw(st.booleans()) for _ in of_evaluator]
    unscored = data.draw(st.integers(0, min(1, len(of_evaluator) - 1)))
    is_key[:unscored] = [False] * unscored
    marked = {place for key, own in zip(is_key, characters(of_evaluator), strict=True) if key for place in own}
    expected = [all(place in marked for place in own) for own in characters(of_model)]

    ends_T = _byte_ends(text, np.array(of_evaluator))
    found = Keys(
        nll_long_S=np.zeros(len(of_evaluator) - unscored, dtype=np.float32),
        nll_short_S=np.array([3.0 if key else 0.0 for key in is_key[unscored:]], dtype=np.float32),
        ends_S=ends_T[unscored:],
        tokens_D=np.array([len(of_evaluator) - unscored], dtype=np.int32),
        first_D=np.array([byte_starts(ends_T)[unscored] if unscored else 0]),
        documents=("a",),
    )
    (spans,) = found.spans()
    assert inside(spans, _byte_ends(text, np.array(of_model))).tolist() == expected


def test_tokens_of_no_text_at_the_start_are_never_key_tokens():
    assert inside(np.array([[0, 4]]), np.array([0, 0, 4])).tolist() == [False, False, True]


def test_both_artefacts_come_back_as_they_were():
    back = keys_from_bytes(keys().to_bytes())
    for item in dataclasses.fields(Keys):
        np.testing.assert_array_equal(getattr(back, item.name), getattr(keys(), item.name))
    mask = np.arange(len(nll().nll_S)) % 2 == 0
    found = key_nll_from_bytes(KeyNll(nll=nll(), key_S=mask).to_bytes())
    np.testing.assert_array_equal(found.key_S, mask)
    np.testing.assert_array_equal(found.nll.nll_S, nll().nll_S)
    assert found.mean() == pytest.approx(math.fsum(nll().nll_S[mask].tolist()) / mask.sum())


def with_array(content, name, array):
    """A file in which one array is another one."""
    old, new = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    with zipfile.ZipFile(new, "w") as file:
        for entry in old.namelist():
            file.writestr(entry, buffer.getvalue() if entry == f"{name}.npy" else old.read(entry))
    return new.getvalue()


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("nll_long", np.array([np.nan, 1, 1, 1], dtype="<f4")),
        ("nll_short", np.array([-1, 1, 1, 1], dtype="<f4")),
        ("nll_short", np.array([1, 1, 1], dtype="<f4")),
        ("nll_long", np.array([1, 1, 1, 1], dtype="<f8")),
        ("nll_long", np.array([1, 1, 1, None], dtype=object)),
        ("ends", np.array([2, 5, 4, 4], dtype="<i8")),
        ("ends", np.array([0, 5, 9, 4], dtype="<i8")),
        ("tokens", np.array([5, -1], dtype="<i4")),
        ("first", np.array([0], dtype="<i8")),
    ],
)
def test_keys_that_nobody_writes_are_refused(name, array):
    with pytest.raises(ValueError, match=r"\w"):
        keys_from_bytes(with_array(keys().to_bytes(), name, array))


def test_a_mask_of_another_length_is_refused():
    content = KeyNll(nll=nll(), key_S=np.ones(len(nll().nll_S), dtype=bool)).to_bytes()
    with pytest.raises(ValueError, match="mask"):
        key_nll_from_bytes(with_array(content, "key", np.ones(2, dtype=bool)))
    with pytest.raises(ValueError, match="key"):
        key_nll_from_bytes(with_array(content, "key", np.ones(len(nll().nll_S), dtype="<i4")))
