"""Which tokens are scored with how much context: by hand, and by a slow independent reading of each protocol."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longeval.errors import LongEvalError
from longeval.studies.ppl.protocols import PROTOCOLS, check_stride, prefix_windows, sliding_windows, stream_windows


def spans(windows):
    return [(w.document, w.start, w.stop, w.score_start, w.length, w.context) for w in windows]


def test_prefix_scores_every_token_after_the_first_of_documents_that_fill_the_window():
    assert spans(prefix_windows([10, 7, 8], 8, 256, False)) == [(0, 0, 8, 1, 8, 1), (2, 0, 8, 1, 8, 1)]


def test_prefix_with_bos_holds_one_document_token_less_and_scores_all_of_them():
    assert spans(prefix_windows([10, 7, 6], 8, 256, True)) == [(0, 0, 7, 0, 8, 1), (1, 0, 7, 0, 8, 1)]


def test_windows_with_a_prefix_of_two_tokens():
    """Two tokens fewer of the document in each, none of the prefix scored, context counted from the window's start."""
    assert spans(prefix_windows([10, 6, 5], 8, 256, 2)) == [(0, 0, 6, 0, 8, 2), (1, 0, 6, 0, 8, 2)]
    assert prefix_windows([10], 2, 256, 2) == []
    # 10 tokens, 4 of them in a window of 6, every 3.
    expected = [(0, 0, 4, 0, 6, 2), (0, 3, 7, 4, 6, 3), (0, 6, 10, 7, 6, 3)]
    assert spans(sliding_windows([10], 6, 3, 2)) == expected
    assert spans(stream_windows([4, 7], 5, 3, 2)) == [
        (0, 0, 3, 0, 5, 2),
        (0, 3, 6, 3, 5, 2),
        (1, 6, 9, 6, 5, 2),
    ]
    with pytest.raises(LongEvalError, match="--stride 7: longer than a window of 8"):
        check_stride(PROTOCOLS.lookup("sliding"), 7, 8, 2)


def test_sliding_by_hand():
    # 10 tokens, windows of 6 every 3: the second scores 6, 7, 8 and the third ends with the document.
    assert spans(sliding_windows([10], 6, 3, False)) == [
        (0, 0, 6, 1, 6, 1),
        (0, 3, 9, 6, 6, 3),
        (0, 6, 10, 9, 4, 3),
    ]


def test_sliding_stops_with_the_first_window_that_reaches_the_end():
    assert spans(sliding_windows([9], 6, 3, False)) == [(0, 0, 6, 1, 6, 1), (0, 3, 9, 6, 6, 3)]


def test_sliding_short_document_is_one_window_and_a_single_token_none():
    assert spans(sliding_windows([4, 1], 6, 3, False)) == [(0, 0, 4, 1, 4, 1)]
    assert spans(sliding_windows([1], 6, 3, True)) == [(0, 0, 1, 0, 2, 1)]


def test_stream_by_hand():
    # Documents of 4 and 7 tokens joined to 11; full windows only, every token after each window's first.
    assert spans(stream_windows([4, 7], 5, 3, False)) == [
        (0, 0, 5, 1, 5, 1),
        (1, 3, 8, 4, 5, 1),
        (1, 6, 11, 7, 5, 1),
    ]
    assert spans(stream_windows([4, 7], 5, 3, True))[-1] == (1, 6, 10, 6, 5, 1)


@settings(max_examples=300, deadline=None)
@given(num_tokens=st.integers(1, 60), length=st.integers(2, 20), stride=st.integers(1, 20), bos=st.booleans())
def test_sliding_scores_each_token_once_with_the_context_of_its_first_window(num_tokens, length, stride, bos):
    if stride > length - bos:
        return
    scored = {}
    for window in sliding_windows([num_tokens], length, stride, bos):
        assert window.length <= length
        assert window.start % stride == 0
        for token in range(window.score_start, window.stop):
            assert token not in scored
            scored[token] = token - window.start + bos
    # Independently: token t is scored by the earliest window that holds it with something before it.
    payload = length - bos
    for token in range(num_tokens):
        starts = [s for s in range(0, num_tokens, stride) if s <= token < s + payload]
        contexts = [token - s + bos for s in starts if token - s + bos >= 1]
        expected = max(contexts, default=None)
        assert scored.get(token) == expected


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    length=st.integers(3, 10),
    stride=st.integers(1, 9),
    bos=st.booleans(),
)
def test_stream_windows_name_the_document_of_their_first_scored_token(lengths, length, stride, bos):
    owner = [index for index, num_tokens in enumerate(lengths) for _ in range(num_tokens)]
    windows = stream_windows(lengths, length, stride, bos)
    assert all(window.length == length and window.context == 1 for window in windows)
    assert [w.start for w in windows] == [s for s in range(0, len(owner), stride) if s + length - bos <= len(owner)]
    assert all(owner[window.score_start] == window.document for window in windows)


def test_a_stride_that_leaves_tokens_out_is_refused_where_there_is_one():
    check_stride(PROTOCOLS["sliding"], 8, 8, False)
    with pytest.raises(LongEvalError, match=r"--stride 8: longer than a window"):
        check_stride(PROTOCOLS["sliding"], 8, 8, True)
    check_stride(PROTOCOLS["prefix"], 9999, 8, True)
