"""Which samples are asked, with which examples, in which words; what is refused; what notes say."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
from local_tasks import answering, answering_row, arc_easy, gsm8k, lambada, reading, reading_row
from test_downstream import hflm
from tiny import make_text

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.data.special import prefix_ids
from longeval.errors import LongEvalError
from longeval.studies.tasks.prompts.build import prepare
from longeval.studies.tasks.prompts.encoding import Encoder
from longeval.studies.tasks.prompts.requests import digest


def contexts(prepared):
    return {sample.index: sample.instances[0].args[0] for sample in prepared.samples}


def ids_of(text, tokenizer):
    return tokenizer.encode(text, add_special_tokens=False)


def test_limit_and_indices(window):
    task = arc_easy(num=6)
    whole = contexts(prepare(task, window(), limit=None))
    assert list(whole) == [0, 1, 2, 3, 4, 5]
    assert list(contexts(prepare(task, window(), limit=2))) == [0, 1]
    assert contexts(prepare(task, window(), limit=99)) == whole
    some = prepare(task, window(), limit=5, indices={5, 4, 1})
    assert contexts(some) == {index: whole[index] for index in (1, 4)} and some.num_docs == 6


def test_examples_are_lm_evals_own_whatever_is_left_out(window):
    """As lm-eval draws them, one sample after the other from one generator."""
    task = gsm8k(num=4)
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    theirs = [instance.args[0] for instance in task.instances]
    assert len({text.rsplit("Question:", 1)[0] for text in theirs}) == 4, "each has examples of its own"
    assert list(contexts(prepare(task, window(length=1024), limit=None)).values()) == theirs
    assert contexts(prepare(task, window(length=1024), limit=None, indices=[3])) == {3: theirs[3]}
    assert prepare(task, window(length=1024), limit=1).num_fewshot == 2
    assert contexts(prepare(task, window(length=1024), limit=2, seed=5)) != dict(enumerate(theirs[:2]))
    assert contexts(prepare(task, window(), limit=1, num_fewshot=0)) == {0: theirs[0][theirs[0].rindex("Question:") :]}


def test_a_sample_that_is_cut_keeps_its_examples(window):
    examples = [answering_row(seed, words=3) for seed in range(10, 20)]
    config = {"fewshot_config": {"samples": examples, "sampler": "default"}, "num_fewshot": 2}
    task = answering([answering_row(seed, words=150) for seed in range(3)], **config)
    whole = contexts(prepare(task, window(length=2000), limit=None))
    cut = prepare(task, window(length=200), limit=None)
    assert cut.num_truncated == 3
    for index, text in contexts(cut).items():
        assert text[: text.rindex("Read this.")] == whole[index][: whole[index].rindex("Read this.")]


def test_a_task_that_takes_no_examples_is_given_none(window):
    task = reading(num_fewshot=0)
    with pytest.raises(LongEvalError, match="--num-fewshot 2: task reading"):
        prepare(task, window(), limit=None, num_fewshot=2)
    assert prepare(task, window(), limit=None, num_fewshot=0).num_fewshot == 0


def test_a_sample_that_is_drawn_by_chance_is_the_same_whenever_it_is_made(window):
    def text(doc):
        return f"{random.random()} {np.random.random()} {doc['document']}"

    task = reading(doc_to_text=text, metadata={"document": "document"})
    first = contexts(prepare(task, window(), limit=None))
    assert contexts(prepare(task, window(), limit=None, indices=[2])) == {2: first[2]}
    cut = contexts(prepare(task, window(length=100), limit=None))
    assert {index: text.split()[:2] for index, text in cut.items()} == {
        index: text.split()[:2] for index, text in first.items()
    }
    assert len({text.split()[0] for text in first.values()}) == 4


def test_digests_tell_prompts_and_settings_apart(window):
    rows = [answering_row(seed) for seed in range(3)]
    base = prepare(answering(rows), window(), limit=None)
    assert base.digest == prepare(answering(rows), window(), limit=None).digest
    others = [
        prepare(answering(rows), window(), limit=2),
        prepare(answering([*rows[:2], answering_row(7)]), window(), limit=None),
        prepare(answering(rows), window(), limit=None, max_new_tokens=9),
        prepare(answering(rows, generation_kwargs={"until": ["."], "max_gen_toks": 8}), window(), limit=None),
        prepare(answering(rows), window(bos=True), limit=None),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 6
    prompts = [sample.prompt_digest for sample in base.samples]
    assert [sample.prompt_digest for sample in others[2].samples] == prompts and len(set(prompts)) == 3


def test_tokens_are_those_of_the_longest_input(window, tiny_tokenizer):
    prepared = prepare(reading(), window(bos=True), limit=1)
    (sample,) = prepared.samples
    longest = [0, *ids_of(sample.instances[1].args[0] + " no it does not", tiny_tokenizer)]
    assert sample.tokens == len(longest) and prepared.inputs()[0].tolist() == longest
    prepared = prepare(answering([answering_row(0)]), window(), limit=1)
    prompt_T = prepared.samples[0].requests[0].prompt_T
    assert prepared.samples[0].tokens == len(prompt_T) and prepared.inputs()[0].tolist() == prompt_T.tolist()


def test_generation_is_set_up_as_in_hflm(window):
    task = answering([answering_row(0)], generation_kwargs={"until": ["\n", "", "END"], "max_new_tokens": 11})
    request = prepare(task, window(), limit=None).samples[0].requests[0]
    assert isinstance(request, GenerateRequest)
    assert (request.max_new_tokens, request.stop) == (11, ("\n", "END"))
    default = answering([answering_row(0)], generation_kwargs={"until": "."})
    prepared = prepare(default, window(), limit=None)
    assert (prepared.max_new_tokens, prepared.samples[0].requests[0].stop) == (256, (".",))
    assert prepare(default, window(), limit=None, max_new_tokens=3).max_new_tokens == 3
    assert prepared.notes == ()


@pytest.mark.parametrize(
    ("settings", "unheeded"),
    [
        ({"temperature": 0.5}, "do_sample=True, temperature=0.5"),
        ({"do_sample": False, "num_beams": 4}, "num_beams=4"),
        ({"do_sample": False, "temperature": 0.0, "top_p": 0.9}, None),
    ],
)
def test_sampling_that_a_task_asks_for_is_told_once(settings, unheeded, window):
    task = answering([answering_row(0), answering_row(1)], generation_kwargs={"until": ["\n"], **settings})
    notes = prepare(task, window(), limit=None).notes
    assert len(notes) == (unheeded is not None) and all(f"answering asks for {unheeded};" in note for note in notes)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"document": None}, {"doc_to_text": lambda doc: doc["document"] + "?"}, "the prompt of sample 1 .*None"),
        ({"choices": ["a", "b", ""]}, {"target_delimiter": ""}, "sample 1: a choice has no tokens"),
        ({}, {"metadata": {"cluster": "nowhere"}}, "cluster: nowhere.* sample 0"),
        ({}, {"metadata": {"depth": "nowhere"}}, "depth: nowhere.* sample 0"),
        ({}, {"metadata": {"document": "nowhere"}}, "document: nowhere.* sample 0"),
    ],
)
def test_a_sample_that_cannot_be_made_is_named(row, changes, message, window):
    rows = [reading_row(0), reading_row(1) | row]
    with pytest.raises(LongEvalError, match=f"task reading.*{message}"):
        prepare(reading(rows=rows, **changes), window(length=150 if row else 60), limit=None)


def test_targets_are_texts(window):
    assert prepare(arc_easy(), window(), limit=2).samples[1].target == arc_easy().eval_docs[1]["choices"]["text"][1]
    several = answering([answering_row(0, answers=["a", "b"])], doc_to_target="{{answers}}")
    assert prepare(several, window(), limit=None).samples[0].target == "a | b"
    row = make_text(12, 0)
    assert prepare(lambada(1), window(), limit=None).samples[0].target == f" {row.split()[-1]}"


def test_metadata_names_clusters_and_depths(window):
    rows = [answering_row(seed, where=seed / 2, source=make_text(40, seed // 2)) for seed in range(3)]
    samples = prepare(answering(rows, metadata={"cluster": "source", "depth": "where"}), window(), limit=None).samples
    assert [sample.depth for sample in samples] == [0.0, 0.5, 1.0]
    assert samples[0].cluster == samples[1].cluster != samples[2].cluster
    assert len(samples[0].cluster) == 16, "a document is not repeated in every sample"
    bare = prepare(answering(rows, metadata={"version": 1}), window(), limit=1).samples[0]
    assert (bare.cluster, bare.depth) == (None, None)


def test_the_chat_template_goes_around_the_question(window):
    sample = prepare(reading(gen_prefix="The answer is"), window(chat=True), limit=1).samples[0]
    text, choice = map(window().encoder().special.unmarked, sample.instances[0].args)
    assert text.startswith("<s>[user] Read this.\n") and text.endswith("[assistant] The answer is")
    assert choice == " yes"
    open_turn = prepare(reading(), window(chat=True), limit=1).samples[0].instances[0].args
    assert open_turn[0].endswith("Answer:\n[assistant]") and open_turn[1] == "yes"


def test_a_template_without_system_messages_gets_the_rest(tiny_tokenizer, monkeypatch):
    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template = f"{{% for m in messages %}}{refusal}<{{{{ m['content'] }}}}>{{% endfor %}}"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    assert Encoder(tiny_tokenizer, prefix=()).chat(messages) == "<hello>"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("context", ["", " ", "a b", "a b ", "the model\n", "<s>the", "a  \n "])
@pytest.mark.parametrize("continuation", [" report", "report", "<s> report", "\n"])
def test_pairs_are_split_as_lm_eval_splits_them(
    context, continuation, bos, tiny_model, tiny_tokenizer, tiny_tokenizer_bos, monkeypatch
):
    if not bos and context == " ":
        return  # lm-eval has no context then, and fails
    tokenizer = tiny_tokenizer_bos if bos else tiny_tokenizer
    prefix = prefix_ids(tokenizer) if bos else ()
    theirs, seen = hflm(tiny_model, tokenizer, 64), []
    monkeypatch.setattr(theirs, "_loglikelihood_tokens", lambda requests, **_: seen.extend(requests))
    theirs.loglikelihood([SimpleNamespace(args=(context, continuation))], disable_tqdm=True)
    for parse_special in (True, False) if "<s>" not in context + continuation else (True,):
        encoder = Encoder(tokenizer, prefix=prefix, parse_special=parse_special)
        assert encoder.pairs([(context, continuation)])[0] == seen[0][1:]


@pytest.mark.parametrize("chained", [False, True])
def test_the_end_of_a_long_context_stands_for_all_of_it(chained, tiny_tokenizer, monkeypatch):
    """The same ids as encoding everything, of far fewer characters; a tokenizer that looks further back gets all."""
    context = make_text(600) + " Answer:"
    encoder = Encoder(tiny_tokenizer, prefix=prefix_ids(tiny_tokenizer))
    plain, seen = encoder.plain, []

    def counted(texts):
        seen.extend(map(len, texts))
        ids = plain(texts)
        return [[1 + len(text) % 200, *tokens] if chained else tokens for text, tokens in zip(texts, ids, strict=True)]

    monkeypatch.setattr(encoder, "plain", counted)
    pairs = encoder.pairs([(context, " yes"), (context + " ", "no"), (context, "er says")])
    assert sum(size >= len(context) for size in seen) == (4 if chained else 1)
    start, *whole = encoder.encode([context, *(context + end for end in (" yes", " no", "er says"))])
    assert [pair.context + pair.continuation for pair in pairs] == [start + ids[len(start) :] for ids in whole]


def test_a_digest_knows_where_a_choice_ends():
    def request(*continuations):
        return ChoicesRequest(context_T=ids(7), continuations=tuple(ids(*part) for part in continuations))

    def ids(*tokens):
        return np.array(tokens, dtype=np.int32)

    assert digest([request([1, 2], [3])], settings=False) != digest([request([1], [2, 3])], settings=False)
    assert digest([request([1], [2])], settings=False) == digest([request([1], [2])], settings=True)
