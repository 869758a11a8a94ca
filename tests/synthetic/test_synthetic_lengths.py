"""Prompts have the length asked for, by any tokenizer: never over, and within 1%."""

import bisect
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_settings import HAYSTACK, TASKS, Counter, check_filled, fitting, make_rows, make_setting, max_new_tokens

from longeval.errors import LongEvalError

LEAST = {"bytes": 2048, "bpe": 1024, "words": 512}
"""From which length on all tasks have room."""


def check_lengths(task, length, tokenizer, *, chat, seed=0, num_samples=3, haystack="noise"):
    counter = Counter(tokenizer, chat=chat)
    rows = make_rows(task, make_setting(counter, length=length, num_samples=num_samples, seed=seed, haystack=haystack))
    assert len(rows) == num_samples
    check_filled(rows, counter, length=length, num_new=max_new_tokens(task))
    return rows


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe", "words"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_fills_windows_of_any_tokenizer(task, tokenizer, chat):
    for length in (LEAST[tokenizer] + 7, 4096):
        check_lengths(task, length, tokenizer, chat=chat, num_samples=2)


@given(length=st.integers(1024, 4000), seed=st.integers(0, 2**32), chat=st.booleans(), task=st.sampled_from(TASKS))
@settings(max_examples=16, deadline=None)
def test_any_length_and_seed_is_met(length, seed, chat, task):
    check_lengths(task, length, "bpe", chat=chat, seed=seed)


@pytest.mark.parametrize("task", HAYSTACK)
def test_documents_fill_the_window_too(task):
    rows = check_lengths(task, 3000, "bpe", chat=True, haystack="stdlib")
    assert all(row["haystack_repeats"] == 0 for row in rows)


@pytest.mark.parametrize("task", TASKS)
def test_long_prompts_are_counted_a_few_times_only(task):
    num_samples = 5
    counter = Counter("bpe")
    make_rows(task, make_setting(counter, length=8192, num_samples=num_samples))
    long = [text for text in counter.calls if len(text) > max(map(len, counter.calls)) / 2]
    assert len(long) <= 2 * num_samples + 3
    assert len(counter.calls) <= 5 * num_samples


@pytest.mark.parametrize("task", TASKS)
def test_a_window_too_short_for_the_frame_is_refused_with_what_it_takes(task):
    with pytest.raises(LongEvalError, match=rf"^--lengths 50: .*{task}.* need \d+ tokens") as caught:
        make_rows(task, make_setting(length=50))
    needed = int(str(caught.value).split(" need ")[1].split()[0])
    with pytest.raises(LongEvalError, match=f"--lengths {needed - 1}"):
        make_rows(task, make_setting(length=needed - 1, num_samples=1))
    (row,) = make_rows(task, make_setting(length=needed, num_samples=1))
    assert row["tokens"] + max_new_tokens(task) <= needed


def test_filler_that_packs_too_many_characters_into_a_token_is_refused():
    with pytest.raises(LongEvalError, match=r"passkey: .* 2 tokens"):
        make_rows("passkey", make_setting(lambda text: 2, length=512))


@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=400),
    bare=st.integers(0, 60),
    room=st.integers(0, 900),
    bump=st.integers(0, 4),
)
@settings(max_examples=100, deadline=None)
def test_the_search_finds_the_longest_prompt_that_fits_or_one_near_enough(widths, bare, room, bump):
    """Against looking at every step, for a tokenizer whose tokens are worth anything from 1 to 9 characters."""
    ladder = [0]
    for width in widths:
        ladder.append(ladder[-1] + width)
    budget = fitting.Budget(task="t", length=bare + room, max_new_tokens=0)
    tokens = [bare + step + bump * (step // 7) for step in range(len(ladder))]
    search = fitting.Search(lambda text: tokens[len(text)], budget)
    fits = bisect.bisect_right(tokens, budget.top) - 1
    if fits == len(ladder) - 1 and tokens[fits] < budget.top - budget.slack:
        with pytest.raises(LongEvalError, match="of filler, too few"):
            search.fit(lambda step: "x" * step, ladder)
        return
    for _ in range(2):
        fitted = search.fit(lambda step: "x" * step, ladder)
        assert fitted.tokens == tokens[fitted.step] <= budget.top
        assert fitted.tokens >= budget.top - budget.slack or fitted.step == fits


def test_depths_cover_the_range_from_the_first_few_samples_on():
    levels = [fitting.depth_of(index) for index in range(20)]
    assert sorted(levels[:10]) == pytest.approx([level / 9 for level in range(10)])
    assert levels[10:] == levels[:10]
    assert levels[:3] == pytest.approx([0, 1, 4 / 9])
    for count in range(2, 10):
        taken = sorted(levels[:count])
        gaps = [after - before for before, after in itertools.pairwise(taken)]
        assert max(gaps) <= 2.6 / (count - 1)
