"""Which tokens are scored with how much context: by hand, and by a slow independent reading of each protocol."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longeval.errors import LongEvalError
from longeval.studies.ppl.protocols import PROTOCOLS, check_stride, prefix_windows, sliding_windows, stream_windows


def spans(windows):
    return [(w.document, w.start, w.stop, w.score_start, w.length, w.context) for w in windows]


@pytest.mark.parametrize(
    ("lengths", "window", "num_prefix", "expected"),
    [
        ([10, 7, 8], 8, 0, [(0, 0, 8, 1, 8, 1), (2, 0, 8, 1, 8, 1)]),
        # With a prefix, fewer tokens of the document, and all of them scored.
        ([10, 7, 6], 8, 1, [(0, 0, 7, 0, 8, 1), (1, 0, 7, 0, 8, 1)]),
        ([10, 6, 5], 8, 2, [(0, 0, 6, 0, 8, 2), (1, 0, 6, 0, 8, 2)]),
        ([10], 2, 2, []),
    ],
)
def test_prefix_by_hand(lengths, window, num_prefix, expected):
    assert spans(prefix_windows(lengths, window, 256, num_prefix)) == expected


@pytest.mark.parametrize(
    ("lengths", "num_prefix", "expected"),
    [
        # Windows of 6 every 3: the second scores 6, 7, 8 and the third ends with the document.
        ([10], 0, [(0, 0, 6, 1, 6, 1), (0, 3, 9, 6, 6, 3), (0, 6, 10, 9, 4, 3)]),
        # The first window that reaches the end is the last.
        ([9], 0, [(0, 0, 6, 1, 6, 1), (0, 3, 9, 6, 6, 3)]),
        ([4, 1], 0, [(0, 0, 4, 1, 4, 1)]),
        ([1], 1, [(0, 0, 1, 0, 2, 1)]),
        # 4 tokens of the document in a window; context is counted from the window's start.
        ([10], 2, [(0, 0, 4, 0, 6, 2), (0, 3, 7, 4, 6, 3), (0, 6, 10, 7, 6, 3)]),
    ],
)
def test_sliding_by_hand(lengths, num_prefix, expected):
    assert spans(sliding_windows(lengths, 6, 3, num_prefix)) == expected


@pytest.mark.parametrize(
    ("num_prefix", "expected"),
    [
        (0, [(0, 0, 5, 1, 5, 1), (1, 3, 8, 4, 5, 1), (1, 6, 11, 7, 5, 1)]),
        (1, [(0, 0, 4, 0, 5, 1), (0, 3, 7, 3, 5, 1), (1, 6, 10, 6, 5, 1)]),
        (2, [(0, 0, 3, 0, 5, 2), (0, 3, 6, 3, 5, 2), (1, 6, 9, 6, 5, 2)]),
    ],
)
def test_stream_by_hand(num_prefix, expected):
    """Documents of 4 and 7 tokens joined to 11, windows of 5 every 3; only full ones."""
    assert spans(stream_windows([4, 7], 5, 3, num_prefix)) == expected


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


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
def test_a_stride_that_leaves_tokens_out_is_refused_where_there_is_one(num_prefix):
    check_stride(PROTOCOLS["sliding"], 8 - num_prefix, 8, num_prefix)
    with pytest.raises(LongEvalError, match=f"--stride {9 - num_prefix}: "):
        check_stride(PROTOCOLS["sliding"], 9 - num_prefix, 8, num_prefix)
    check_stride(PROTOCOLS["prefix"], 9999, 8, num_prefix)
