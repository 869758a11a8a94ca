"""Cutting by hand on small texts, and what must hold for any text, choices and window."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_tasks import answering, answering_row, gsm8k, reading, reading_row
from tiny import make_text

from longeval.data.special import prefix_ids
from longeval.errors import LongEvalError
from longeval.studies.tasks.prompts.build import prepare
from longeval.studies.tasks.prompts.encoding import Encoder
from longeval.studies.tasks.prompts.overlong import NoRoomError, cut, document_field, most_that_fits
from longeval.studies.tasks.prompts.requests import PromptWindow


@pytest.mark.parametrize(
    ("side", "keep", "left"),
    [
        ("middle", 3, "one two|five"),
        ("middle", 4, "one two|four five"),
        ("left", 2, "| four five"),
        ("right", 2, "one two|"),
        ("middle", 0, "|"),
        ("middle", 5, "one two three four five"),
    ],
)
def test_what_stays(side, keep, left):
    """Units are words with the blank before them."""
    ends_U = np.array([3, 7, 13, 18, 23])
    text = cut("one two three four five", ends_U, keep, side)
    assert text.replace(" ", "") == left.replace("|", "").replace(" ", "")
    head, _, tail = left.partition("|")
    assert text.startswith(head) and text.endswith(tail)


def test_the_document_is_the_longest_text_that_stands_in_the_prompt():
    doc = {
        "question": "Q" * 90,
        "context": "a long story \n",
        "title": "story",
        "hidden": "nowhere in the prompt, and the longest",
        "number": 17,
    }
    assert document_field(doc, ["x a long story y", "Q" * 90]) == "context"
    assert document_field({"question": "which?", "gold": "a"}, ["which?"]) is None
    assert document_field({"context": "  \n"}, ["anything"]) is None


@given(
    num_units=st.integers(2, 3000),
    rest=st.integers(0, 50),
    room=st.integers(1, 3000),
    each=st.floats(0.2, 3),
    jitter=st.integers(0, 2),
)
def test_what_is_found_fits_and_little_more_would(num_units, rest, room, each, jitter):
    """Tokens grow by `each` a unit, up and down by `jitter` where the text was cut."""
    calls = []

    def measure(keep):
        calls.append(keep)
        return rest + int(each * keep) + (keep * 7919) % (jitter + 1)

    tokens = measure(num_units)
    length = min(rest + room, tokens - 1)
    if measure(1) > length:
        with pytest.raises(NoRoomError) as caught:
            most_that_fits(measure, num_units, length=length, tokens=tokens)
        assert caught.value.needed == measure(1)
        return
    calls.clear()
    keep = most_that_fits(measure, num_units, length=length, tokens=tokens)
    assert measure(keep) <= length
    assert length - measure(keep) <= 4 + each + jitter
    assert len(calls) <= 20


def test_a_document_that_is_denser_at_its_end_still_fills_the_window():
    def measure(keep):
        return keep if keep < 500 else 500 + 3 * (keep - 500)

    keep = most_that_fits(measure, 1000, length=1000, tokens=2000)
    assert keep == 666 and measure(keep) == 998
    assert 697 <= measure(most_that_fits(measure, 1000, length=700, tokens=2000)) <= 700
    with pytest.raises(NoRoomError) as caught:
        most_that_fits(lambda keep: 1 / 0, 1, length=10, tokens=12)  # one unit has nothing to give
    assert caught.value.needed == 12


def prompts_of(prepared, tokenizer):
    return [tokenizer.decode(sample.requests[0].context_T) for sample in prepared.samples]


def document_in(prompt):
    return prompt[len("Read this.\n") : prompt.index("\nQuestion:")]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("side", ["middle", "left", "right"])
def test_only_the_document_is_cut(side, chat, window, tiny_tokenizer):
    text = make_text(200)
    task = reading(rows=[reading_row(0, document=text), reading_row(1, words=4)])
    whole = prepare(task, window(length=4096, chat=chat), limit=None)
    fitted = prepare(task, window(length=150, chat=chat, overlong=side), limit=None)
    prompt = prompts_of(fitted, tiny_tokenizer)[0]
    start, end = prompt.index("Read this.\n") + len("Read this.\n"), prompt.index("\nQuestion: what 0?\nAnswer:")
    left = prompt[start:end]
    third = len(left) // 3
    head, tail = {"middle": (third, third), "left": (0, len(left)), "right": (len(left), 0)}[side]
    assert text.startswith(left[:head]) and text.endswith(left[len(left) - tail :])
    assert prompts_of(whole, tiny_tokenizer)[0] == prompt[:start] + text + prompt[end:]
    before, after = whole.samples[0], fitted.samples[0]
    assert (before.truncated, before.cut_tokens, before.tokens > 150) == (False, 0, True)
    assert after.truncated and after.cut_tokens == before.tokens - after.tokens > 0
    assert 147 <= after.tokens <= 150
    continuations = [[part.tolist() for part in one.requests[0].continuations] for one in (before, after)]
    assert continuations[0] == continuations[1]
    assert after.doc["document"] == text, "what it is scored by stays whole"
    assert whole.samples[1].prompt_digest == fitted.samples[1].prompt_digest, "one that fits is never touched"
    assert not fitted.samples[1].truncated and fitted.samples[1].cut_tokens == 0
    assert fitted.num_truncated == 1


@settings(max_examples=40, deadline=None)
@given(
    document=st.text(st.sampled_from("ab é漢 \n😀the report"), min_size=30, max_size=400),
    length=st.integers(60, 200),
    side=st.sampled_from(["middle", "left", "right"]),
    slow=st.booleans(),
)
def test_for_any_text_nothing_is_longer_than_the_window(document, length, side, slow, tiny_tokenizer):
    if not document.strip():
        return
    task = reading(rows=[reading_row(0, document=document)], metadata={"document": "document"})
    window = PromptWindow(
        tokenizer=tiny_tokenizer, prefix=prefix_ids(tiny_tokenizer), length=length, chat=False, overlong=side
    )
    with pytest.MonkeyPatch.context() as patch:
        if slow:  # as a slow tokenizer, which can't tell where tokens end
            patch.setattr(Encoder, "unit_ends", lambda self, text: np.arange(1, len(text) + 1))
        sample = prepare(task, window, limit=None).samples[0]
    assert sample.tokens <= length
    prompt = tiny_tokenizer.decode(sample.requests[0].context_T, skip_special_tokens=True)
    assert prompt.startswith("Read this.\n") and prompt.endswith("\nQuestion: what 0?\nAnswer:")
    left = document_in(prompt)
    if sample.truncated:
        assert length - sample.tokens <= 6
        assert len(left) < len(document)
        heads = {"left": [0], "right": [len(left)], "middle": range(len(left) + 1)}[side]
        assert any(document.startswith(left[:head]) and document.endswith(left[head:]) for head in heads)
    else:
        assert left == document


def test_another_choice_may_be_the_longest_once_the_document_is_cut(window, tiny_tokenizer):
    """Contexts differ by choice: the document stands twice in one, once beside 45 words in the other."""
    rows = [{"document": make_text(80 + seed, seed), "choices": ["A", "B"], "gold": 0} for seed in range(3)]
    task = reading(
        rows=rows,
        doc_to_text="gold",
        doc_to_choice=lambda doc: [f"{doc['document']} {doc['document']} A", f"{doc['document']} {make_text(45)} B"],
        doc_to_target=lambda doc: "so it is",
        metadata={"document": "document"},
    )
    assert task.multiple_input
    length = len(tiny_tokenizer.encode(make_text(60)))
    for sample in prepare(task, window(length=length), limit=None).samples:
        first, second = (len(request.context_T) + len(request.continuations[0]) for request in sample.requests)
        assert first < second == sample.tokens <= length
        assert length - sample.tokens <= 3


def test_error_names_the_longest(window):
    rows = [reading_row(0, words=5), reading_row(1, words=100), reading_row(2, words=150)]
    needed = prepare(reading(rows=rows), window(length=4096), limit=None).samples[2].tokens
    with pytest.raises(LongEvalError, match=f"2 samples .*100 tokens.*sample 2, needs {needed}"):
        prepare(reading(rows=rows), window(length=100, overlong="error"), limit=None)
    assert prepare(reading(rows=rows), window(length=needed, overlong="error"), limit=None).skipped == {}


def test_a_window_too_short_for_the_rest_says_how_long_it_must_be(window):
    rows = [reading_row(0), reading_row(1, question=make_text(40)), reading_row(2)]
    task = reading(rows=rows)
    with pytest.raises(LongEvalError, match=r"--lengths 50: .*sample 1 needs") as caught:  # the longest, not the first
        prepare(task, window(length=50), limit=None)
    shortest = int(caught.value.remedy.split()[2])
    fitted = prepare(task, window(length=shortest), limit=None)
    assert fitted.samples[1].tokens == shortest and fitted.samples[1].truncated
    with pytest.raises(LongEvalError):
        prepare(task, window(length=shortest - 1), limit=None)


def test_what_is_needed_counts_the_longest_choice_after_another_was_cut_for(window, tiny_tokenizer):
    # The longer choice of a whole document is the first; as the document shrinks, the second grows beyond it.
    rows = [{**reading_row(0, words=80), "gold": 0}]

    def choices(doc):
        return [make_text(60), make_text(20 + 2 * (80 - len(doc["document"].split())))]

    task = reading(rows=rows, doc_to_choice=choices)
    whole = prepare(task, window(length=8192), limit=None).samples[0].tokens
    with pytest.raises(LongEvalError, match="sample 0 needs") as caught:
        prepare(task, window(length=int(whole * 0.8)), limit=None)
    bare = {"document": rows[0]["document"][:1]}
    second = choices(bare)[1]
    prompt = f"Read this.\n{bare['document']}\nQuestion: {rows[0]['question']}\nAnswer: {second}"
    said = int(caught.value.problem.split(" needs ")[1].split()[0])
    assert abs(said - len(tiny_tokenizer.encode(prompt))) <= 3


def test_an_answer_that_takes_the_window_is_named_with_the_most_that_fits(window):
    task = answering([answering_row(seed) for seed in range(2)])

    def prepared(length, most):
        return prepare(task, window(length=length), limit=None, max_new_tokens=most)

    with pytest.raises(LongEvalError, match=r"\(90 of them for its answer\)") as caught:
        prepared(100, 90)
    number = int(re.search(r"--max-new-tokens (\d+)", caught.value.remedy).group(1))
    assert prepared(100, number).num_truncated == 2
    with pytest.raises(LongEvalError):
        prepared(100, number + 1)
    with pytest.raises(LongEvalError) as caught:
        prepared(20, 90)
    assert "--max-new-tokens" not in caught.value.remedy, "no answer is short enough for so short a window"


@pytest.mark.parametrize(("overlong", "fitting"), [("middle", 1), ("error", 3)])
def test_examples_that_take_the_window_are_named_with_the_most_that_fit(window, overlong, fitting):
    def tokens(shots):
        return prepare(gsm8k(num=1), window(length=4096), limit=None, num_fewshot=shots).samples[0].tokens + 12

    length = tokens(fitting)
    asked = window(length=length, overlong=overlong)
    with pytest.raises(LongEvalError) as caught:
        prepare(gsm8k(num=1), asked, limit=None, num_fewshot=4)
    assert f"{tokens(4) - tokens(0)} for its 4 examples" in caught.value.problem
    assert f"needs {tokens(4)}" in caught.value.problem and f"--lengths {tokens(4)}" in caught.value.remedy
    assert f"--num-fewshot {fitting}" in caught.value.remedy
    assert prepare(gsm8k(num=1), asked, limit=None, num_fewshot=fitting).samples[0].tokens + 12 == length
    with pytest.raises(LongEvalError):
        prepare(gsm8k(num=1), asked, limit=None, num_fewshot=fitting + 1)


def test_a_question_is_never_cut(window):
    only_question = reading(rows=[reading_row(0, question=make_text(80))], doc_to_text="{{question}}\nAnswer:")
    with pytest.raises(LongEvalError, match=r"--lengths 60: .* sample 0 needs 150 tokens .*no document"):
        prepare(only_question, window(length=60), limit=None)
    whole_message = answering([{"input": make_text(80), "answer": "a"}], doc_to_text="{{input}}")
    for side in ("left", "right"):
        with pytest.raises(LongEvalError, match=f"--overlong {side}: task answering"):
            prepare(whole_message, window(length=60, overlong=side), limit=None)
    assert prepare(whole_message, window(length=60), limit=None).samples[0].truncated


def test_a_document_that_the_task_names_is_the_one_that_is_cut(window, tiny_tokenizer):
    rows = [reading_row(0, words=70, other=make_text(100, 5))]
    text = "Read this.\n{{document}}\nQuestion: {{question}}\n{{other}}\nAnswer:"
    for metadata, whole in (({"document": "document"}, "other"), ({}, "document")):
        task = reading(rows=rows, doc_to_text=text, metadata=metadata)
        prepared = prepare(task, window(length=280), limit=None)
        (prompt,) = prompts_of(prepared, tiny_tokenizer)
        assert prepared.samples[0].truncated
        assert [key for key in ("document", "other") if rows[0][key] in prompt] == [whole]
