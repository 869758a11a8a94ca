"""Which samples are asked, with which examples, in which words; what is refused; what notes say."""

from __future__ import annotations

import random

import numpy as np
import pytest
from local_tasks import answering, answering_row, arc_easy, gsm8k, lambada, reading, reading_row
from tiny import make_text

from longeval.backends.base import ChoicesRequest, GenerateRequest
from longeval.data.special import prefix_ids
from longeval.errors import LongEvalError
from longeval.studies.tasks.prompts.build import prepare
from longeval.studies.tasks.prompts.encoding import Encoder
from longeval.studies.tasks.prompts.requests import digest


def contexts(prepared):
    return {sample.index: sample.instances[0].args[0] for sample in prepared.samples}


def test_limit_and_indices(window):
    task = arc_easy(num=6)
    whole = prepare(task, window(), limit=None)
    assert [sample.index for sample in whole.samples] == [0, 1, 2, 3, 4, 5]
    assert [sample.index for sample in prepare(task, window(), limit=2).samples] == [0, 1]
    assert [sample.index for sample in prepare(task, window(), limit=99).samples] == [0, 1, 2, 3, 4, 5]
    some = prepare(task, window(), limit=5, indices={5, 4, 1})
    assert [sample.index for sample in some.samples] == [1, 4]
    assert some.num_docs == 6
    assert contexts(some) == {index: text for index, text in contexts(whole).items() if index in (1, 4)}


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
        assert text.split("what 1")[:3][0] == whole[index].split("what 1")[:3][0]
        assert text[: text.rindex("Read this.")] == whole[index][: whole[index].rindex("Read this.")]


def test_a_task_that_takes_no_examples_is_given_none(window):
    task = reading(num_fewshot=0)
    with pytest.raises(LongEvalError, match="--num-fewshot 2: task reading takes no examples"):
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
    assert [sample.prompt_digest for sample in others[2].samples] == [sample.prompt_digest for sample in base.samples]
    assert len({sample.prompt_digest for sample in base.samples}) == 3
    assert all(len(sample.prompt_digest) == 16 for sample in base.samples)
    choices = [
        prepare(reading(rows=[reading_row(0, choices=pair)]), window(), limit=None)
        for pair in (["ab", "c"], ["a", "bc"])
    ]
    assert choices[0].samples[0].prompt_digest != choices[1].samples[0].prompt_digest


def test_tokens_are_those_of_the_longest_input(window, tiny_tokenizer):
    sample = prepare(reading(), window(bos=True), limit=1).samples[0]
    text = sample.instances[1].args[0] + " no it does not"
    assert sample.tokens == 1 + len(tiny_tokenizer.encode(text, add_special_tokens=False))
    prepared = prepare(answering([answering_row(0)]), window(), limit=1)
    request = prepared.samples[0].requests[0]
    assert prepared.samples[0].tokens == len(request.prompt_T)
    assert prepared.inputs()[0].tolist() == request.prompt_T.tolist()
    whole = prepare(reading(), window(bos=True), limit=1).inputs()[0]
    assert whole.tolist() == [0, *tiny_tokenizer.encode(text, add_special_tokens=False)]


def test_the_choices_of_a_question_are_one_request(window):
    prepared = prepare(arc_easy(), window(), limit=None)
    assert [len(sample.requests) for sample in prepared.samples] == [1] * 6
    assert [len(sample.requests[0].continuations) for sample in prepared.samples] == [3] * 6
    assert prepared.request_type == "multiple_choice" and prepared.max_new_tokens is None


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
        ({"do_sample": True, "temperature": 0.7}, "do_sample=True, temperature=0.7"),
        ({"temperature": 0.5}, "do_sample=True, temperature=0.5"),
        ({"do_sample": False, "num_beams": 4}, "num_beams=4"),
        ({"do_sample": False, "temperature": 1}, None),
        ({"do_sample": False, "temperature": 0.0, "top_p": 0.9}, None),
    ],
)
def test_sampling_is_told(settings, unheeded, window):
    task = answering([answering_row(0), answering_row(1)], generation_kwargs={"until": ["\n"], **settings})
    notes = prepare(task, window(), limit=None).notes
    assert notes == ((f"answering asks for {unheeded}; answers are decoded greedily instead",) if unheeded else ())


def test_a_template_that_fails_names_the_sample(window):
    rows = [reading_row(0), {**reading_row(1), "document": None}]
    with pytest.raises(LongEvalError, match=r"task reading: the prompt of sample 1 can't be made: .*None"):
        prepare(reading(rows=rows, doc_to_text=lambda doc: doc["document"] + "?"), window(), limit=None)


def test_a_choice_without_tokens_names_the_sample(window):
    rows = [reading_row(0), reading_row(1, choices=["a", "b", ""])]
    with pytest.raises(LongEvalError, match="task reading, sample 1: a choice has no tokens"):
        prepare(reading(rows=rows, target_delimiter=""), window(), limit=None)


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
    for key in ("cluster", "depth"):
        with pytest.raises(LongEvalError, match=f"metadata says {key}: nowhere, a field that sample 0 doesn't have"):
            prepare(answering(rows, metadata={key: "nowhere"}), window(), limit=None)
    bare = prepare(answering(rows, metadata={"version": 1}), window(), limit=1).samples[0]
    assert (bare.cluster, bare.depth) == (None, None)


def test_bos_is_there_once(window, tiny_tokenizer):
    for bos, chat, first in ((False, False, 0), (True, False, 1), (False, True, 1), (True, True, 1)):
        ids = prepare(reading(), window(bos=bos, chat=chat), limit=1).samples[0].requests[0].context_T.tolist()
        assert ids.count(tiny_tokenizer.bos_token_id) == first, (bos, chat)
        assert first == 0 or ids[0] == tiny_tokenizer.bos_token_id


def test_the_chat_template_goes_around_the_question(window):
    sample = prepare(reading(gen_prefix="The answer is"), window(chat=True), limit=1).samples[0]
    text, choice = map(window().encoder().special.unmarked, sample.instances[0].args)
    assert text.startswith("<s>[user] Read this.\n") and text.endswith("[assistant] The answer is")
    assert choice == " yes"
    open_turn = prepare(reading(), window(chat=True), limit=1).samples[0].instances[0].args
    assert open_turn[0].endswith("Answer:\n[assistant]") and open_turn[1] == "yes"


def test_a_template_without_system_messages_gets_the_rest(tiny_tokenizer):
    from unittest import mock

    refusal = "{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template = f"{{% for m in messages %}}{refusal}<{{{{ m['content'] }}}}>{{% endfor %}}"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    with mock.patch.object(tiny_tokenizer, "chat_template", template):
        assert Encoder(tiny_tokenizer, prefix=()).chat(messages) == "<hello>"


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("context", ["", " ", "a b", "a b ", "the model\n", "<s>the", "a  \n "])
@pytest.mark.parametrize("continuation", [" report", "report", "<s> report", "\n"])
def test_pairs_are_split_as_lm_eval_splits_them(
    context, continuation, bos, tiny_model, tiny_tokenizer, tiny_tokenizer_bos
):
    from unittest import mock

    from test_downstream import hflm

    tokenizer = tiny_tokenizer_bos if bos else tiny_tokenizer
    if not bos and not context.strip() and context:
        return  # lm-eval has no context then, and fails
    theirs = hflm(tiny_model, tokenizer, 64)
    seen = []
    with mock.patch.object(theirs, "_loglikelihood_tokens", lambda requests, **_: seen.extend(requests)):
        theirs.loglikelihood([mock.Mock(args=(context, continuation))], disable_tqdm=True)
    assert (
        Encoder(tokenizer, prefix=prefix_ids(tokenizer) if bos else (), parse_special=True).pairs(
            [(context, continuation)]
        )[0]
        == seen[0][1:]
    )
    if "<s>" not in context + continuation:
        assert (
            Encoder(tokenizer, prefix=prefix_ids(tokenizer) if bos else ()).pairs([(context, continuation)])[0]
            == seen[0][1:]
        )


@pytest.mark.parametrize("chained", [False, True])
def test_the_end_of_a_long_context_stands_for_all_of_it(chained, tiny_tokenizer):
    """The same ids as encoding everything, of far fewer characters; a tokenizer that looks further back gets all."""
    from unittest import mock

    context = make_text(600) + " Answer:"
    encoder = Encoder(tiny_tokenizer, prefix=prefix_ids(tiny_tokenizer))
    plain, seen = encoder.plain, []

    def counted(texts):
        seen.extend(map(len, texts))
        ids = plain(texts)
        return [[1 + len(text) % 200, *tokens] if chained else tokens for text, tokens in zip(texts, ids, strict=True)]

    with mock.patch.object(encoder, "plain", counted):
        pairs = encoder.pairs([(context, " yes"), (context + " ", "no"), (context, "er says")])
        whole = [encoder.encode([context])[0], *encoder.encode([context + end for end in (" yes", " no", "er says")])]
    assert [pair.context + pair.continuation for pair in pairs] == [
        whole[0] + ids[len(whole[0]) :] for ids in whole[1:]
    ]
    long = [size for size in seen[:-4] if size >= len(context)]
    assert len(long) == (4 if chained else 1)


def test_a_digest_knows_where_a_choice_ends():
    def request(*continuations):
        return ChoicesRequest(context_T=ids(7), continuations=tuple(ids(*part) for part in continuations))

    def ids(*tokens):
        return np.array(tokens, dtype=np.int32)

    assert digest([request([1, 2], [3])], settings=False) != digest([request([1], [2, 3])], settings=False)
    assert digest([request([1], [2])], settings=False) == digest([request([1], [2])], settings=True)
