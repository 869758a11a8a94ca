"""Prefixes of inputs, texts that are scored whole, and special tokens that prompts spell."""

from __future__ import annotations

import copy
import math

import pytest
from local_tasks import answering, answering_row, reading, reading_row, task_of
from plain_backend import KnownBackend
from tiny import make_text, save_tiny_llama
from tokenizers import Tokenizer

from longeval.data.special import prefix_ids
from longeval.errors import LongEvalError
from longeval.studies.tasks.answers import answer
from longeval.studies.tasks.prompts.build import prepare
from longeval.studies.tasks.prompts.encoding import Encoder

GLM = (
    "[gMASK]<sop>{% for m in messages %}<s>[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>[bot]{% endif %}"
)
"""A chat template that writes the tokenizer's prefix itself, and a control token in front of each message."""


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    """A tokenizer that puts [gMASK]<sop> (1, 2) in front of a text and has neither BOS nor EOS; <s> is 0."""
    from transformers import AutoTokenizer

    folder = save_tiny_llama(tmp_path_factory.mktemp("models") / "glm", prefix=("[gMASK]", "<sop>"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = GLM
    return tokenizer


@pytest.fixture(scope="module")
def as_text(glm):
    """Token ids of a text in which nothing is special, by the tokenizers library."""
    backend = Tokenizer.from_str(glm.backend_tokenizer.to_str())
    backend.encode_special_tokens = True
    return lambda text: backend.encode(text, add_special_tokens=False).ids


def test_a_prefix_of_two_tokens_is_there_once(glm, as_text):
    encoder = Encoder(glm, prefix=prefix_ids(glm))
    assert encoder.encode(["the model"]) == [[1, 2, *as_text("the model")]]
    assert Encoder(glm, prefix=()).encode(["the model"]) == [as_text("the model")]
    prompt = encoder.chat([{"role": "user", "content": "the"}])
    assert encoder.encode([prompt]) == [[1, 2, 0, *as_text("[user] the\n"), 0, *as_text("[bot]")]]
    assert encoder.pairs([("", " a"), ("the", " a")]) == [
        ([1, 2], as_text(" a")),
        ([1, 2, *as_text("the")], as_text(" a")),
    ]
    with pytest.raises(LongEvalError, match="BOS"):
        Encoder(glm, prefix=()).pairs([("", " a")])


@pytest.mark.parametrize("length", [3, 7, 64])
@pytest.mark.parametrize("words", [1, 40])
def test_a_whole_text_is_scored_once_behind_its_prefix(length, words, glm, as_text, tiny_tokenizer_bos):
    text = make_text(words)
    for encoder, prefix in (
        (Encoder(glm, prefix=prefix_ids(glm)), [1, 2]),
        (Encoder(tiny_tokenizer_bos, prefix=prefix_ids(tiny_tokenizer_bos)), [0]),
    ):
        ids = prefix + encoder.plain([text])[0]
        windows = encoder.windows(text, length)
        assert windows[0].context == prefix
        scored = len(prefix)
        for context, continuation in windows:
            assert continuation and len(context) + len(continuation) <= length
            end = scored + len(continuation)
            assert ids[scored:end] == continuation and ids[scored - len(context) : scored] == context
            scored = end
        assert scored == len(ids)
        assert all(len(c) + len(t) == length for c, t in windows[1:]), "later windows are full"


def test_a_window_without_room_behind_the_prefix_is_refused(glm):
    with pytest.raises(LongEvalError, match=r"--lengths 2: .*3"):
        Encoder(glm, prefix=prefix_ids(glm)).windows("the", 2)


def test_an_empty_text_has_nothing_to_score(window, lm, tiny_tokenizer_bos):
    config = {
        "task": "rolling",
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    task = task_of(config, test=[{"text": ""}, {"text": "the model"}])
    here = window(tokenizer=tiny_tokenizer_bos, bos=True)
    prepared = prepare(task, here, limit=None)
    assert [len(sample.requests) for sample in prepared.samples] == [0, 1]
    answers = answer(task, prepared, lm(KnownBackend(lambda context, ids: -math.log(2)), here))
    assert answers.aggregates["bits_per_byte"].value == pytest.approx(1 / len("the model"))


@pytest.mark.parametrize("chat", [False, True])
def test_what_a_prompt_spells_is_text(chat, window, glm, as_text):
    """In documents, examples and answers; only what the chat template writes is a control token."""
    rows = [reading_row(0, document="the <s>model<sop>", question="who<s>?", choices=["<s>yes", "no"])]
    rows.append(reading_row(1, document="a model", question="<sop>", choices=["yes", "no"]))
    here = window(tokenizer=glm, bos=True, chat=chat)
    prepared = prepare(reading(rows), here, limit=None)
    body = "Read this.\nthe <s>model<sop>\nQuestion: who<s>?\nAnswer:"
    front = [0, *as_text(f"[user] {body}\n"), 0, *as_text("[bot]")] if chat else as_text(body)
    (request,) = prepared.samples[0].requests
    assert request.context_T.tolist() == [1, 2, *front]
    blank = "" if chat else " "
    assert [part.tolist() for part in request.continuations] == [as_text(f"{blank}<s>yes"), as_text(f"{blank}no")]
    assert prepared.spelt == {"<s>": 3, "<sop>": 2}


def test_examples_and_openings_of_answers_are_text_too(window, glm, as_text):
    examples = [answering_row(seed, document="old", question="q", answer="<s>a") for seed in range(4)]
    config = {"fewshot_config": {"samples": examples, "sampler": "first_n"}, "num_fewshot": 1, "gen_prefix": "So<sop>"}
    task = answering([answering_row(0, document="new")], **config)
    here = window(tokenizer=glm, bos=True, chat=True)
    prompt_T = prepare(task, here, limit=None).samples[0].requests[0].prompt_T.tolist()
    assert prompt_T[:3] == [1, 2, 0] and (prompt_T.count(0), prompt_T.count(1), prompt_T.count(2)) == (4, 1, 1)
    decoded = glm.decode(prompt_T[3:])
    assert decoded.startswith("[user] Read this.\nold\nQuestion: q\nAnswer:\n<s>[assistant] So<sop> <s>a\n<s>[user] ")
    assert decoded.endswith("<s>[assistant] So<sop>")


def test_parsing_is_as_the_tokenizer_reads_the_prompt(window, glm):
    rows = [reading_row(0, document="the <s>model", choices=["<s>yes", "no"])]
    here = window(tokenizer=glm, bos=True, chat=True, parse_special=True)
    prepared = prepare(reading(rows), here, limit=None)
    prompt = here.encoder().special.unmarked(prepared.samples[0].instances[0].args[0])
    (request,) = prepared.samples[0].requests
    assert request.context_T.tolist() == glm(prompt, add_special_tokens=False)["input_ids"]
    assert request.context_T.tolist().count(0) == 3 and request.continuations[0].tolist()[0] == 0
    assert prepared.spelt == {"<s>": 2}


@pytest.mark.parametrize("chat", [False, True])
def test_a_document_that_spells_special_tokens_is_cut_like_any_other(chat, window, glm):
    rows = [reading_row(0, document=f"<s>{make_text(150)}<s>", question="<s>what?")]
    here = window(tokenizer=glm, bos=True, chat=chat, length=120)
    sample = prepare(reading(rows), here, limit=None).samples[0]
    assert sample.truncated and 117 <= sample.tokens <= 120
    prompt = sample.instances[0].args[0]
    assert "Read this.\n<s>" in prompt and "<s>what?" in prompt
    assert sample.requests[0].context_T.tolist().count(0) == 2 * chat


@pytest.mark.parametrize("change", ["m['content'][:3]", "m['content'] | upper"])
def test_a_template_that_changes_what_a_message_spells_is_refused(change, glm):
    glm = copy.copy(glm)
    glm.chat_template = GLM.replace("m['content'] | trim", change)
    encoder = Encoder(glm, prefix=prefix_ids(glm))
    assert encoder.chat([{"role": "user", "content": "nothing special"}])
    with pytest.raises(LongEvalError, match="--chat-template off"):
        encoder.chat([{"role": "user", "content": "a <s> b"}])
