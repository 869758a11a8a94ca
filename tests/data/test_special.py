"""Texts that spell special tokens, by kinds of tokenizer; what tokenizers put in front; marks for chat templates."""

from __future__ import annotations

import json

import pytest
from byte_level import PLAIN, SPECIALS, byte_level
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from longeval.data.special import SpecialTokens, own_prefix, prefix_ids, spelt_note
from longeval.errors import LongEvalError

TEXT = "<s>the model</s> reads <|im_end|>\n a long</s>report"


def fast(tokenizer, **names):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **names)


def metaspace(*, first=False):
    """Llama-like: a blank in front of every part of a text, or of the text as a whole."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = (
        None if first else normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False) if first else None
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=80, special_tokens=["<unk>", *SPECIALS], show_progress=False)
    tokenizer.train_from_iterator([PLAIN * 10, "\n"], trainer)
    return fast(tokenizer, unk_token="<unk>")


def unigram():
    """Its vocabulary holds control tokens as pieces, which split_special_tokens doesn't keep it from finding."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=70, special_tokens=["<unk>", *SPECIALS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([PLAIN * 10, "\n"], trainer)
    return fast(tokenizer, unk_token="<unk>")


class Letters(PreTrainedTokenizer):
    """A slow tokenizer: a token for each letter."""

    def __init__(self, letters, **names):
        self._letters = {letter: number for number, letter in enumerate(letters)}
        super().__init__(**names)

    @property
    def vocab_size(self):
        return len(self._letters)

    def get_vocab(self):
        return self._letters | self.added_tokens_encoder

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self._letters[token]

    def _convert_id_to_token(self, index):
        return list(self._letters)[index]


def letters(kind=Letters):
    tokenizer = kind(sorted(set(TEXT + PLAIN)), bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("the", special=False)])
    return tokenizer


FAST = {"bytes": byte_level, "metaspace": metaspace, "metaspace first": lambda: metaspace(first=True)}
ALL = FAST | {"unigram": unigram, "slow": letters}


def ids_of(tokenizer, text, **options):
    return tokenizer(text, add_special_tokens=False, **options)["input_ids"]


@pytest.mark.parametrize("kind", ALL)
def test_what_a_text_spells_is_text(kind):
    tokenizer = ALL[kind]()
    before = ids_of(tokenizer, TEXT)
    found = SpecialTokens(tokenizer).encode(TEXT, parse=False, offsets=True)
    control = set(tokenizer.convert_tokens_to_ids(SPECIALS))
    assert control <= set(before) and control.isdisjoint(found.ids)
    assert tokenizer.decode(found.ids, skip_special_tokens=True).replace(" ", "") == TEXT.replace(" ", "")
    if kind in FAST:  # where transformers' own way is right, it is the same
        assert found.ids == ids_of(tokenizer, TEXT, split_special_tokens=True)
    if tokenizer.is_fast:
        assert len(found.ends_T) == len(found.ids) and found.ends_T[-1] == len(TEXT)
        assert TEXT[: found.ends_T[0]] in "<s>"
    else:
        assert found.ends_T is None
    assert ids_of(tokenizer, TEXT) == before, "nothing is left behind in the tokenizer"


@pytest.mark.parametrize("kind", ALL)
def test_asked_to_parse_it_is_the_tokenizers_own(kind):
    tokenizer = ALL[kind]()
    special = SpecialTokens(tokenizer)
    assert special.encode(TEXT, parse=True).ids == ids_of(tokenizer, TEXT)
    for parse in (False, True):
        assert special.encode("the model\n\nreads", parse=parse).ids == ids_of(tokenizer, "the model\n\nreads")
    assert special.spelt(TEXT) == {"<s>": 1, "</s>": 2, "<|im_end|>": 1}
    assert special.is_spelt(TEXT) and not special.is_spelt("the model s>")


def test_added_tokens_that_are_not_special_stay_tokens():
    """Runs of blanks and tags are ordinary vocabulary, beside a text that spells a special token too."""
    tokenizer = byte_level()
    assert SpecialTokens(tokenizer).spelt("a</th>\n\nb") == {}
    (newlines, tag) = tokenizer.convert_tokens_to_ids(["\n\n", "</th>"])
    found = SpecialTokens(tokenizer).encode("a</th>\n\nb</s>", parse=False).ids
    assert found[:4] == [*ids_of(tokenizer, "a"), tag, newlines, *ids_of(tokenizer, "b")]
    slow = letters()
    assert SpecialTokens(slow).encode("the</s>a", parse=False).ids == [
        slow.convert_tokens_to_ids("the"),
        *(slow.convert_tokens_to_ids(letter) for letter in "</s>a"),
    ]


@pytest.mark.parametrize("kind", ALL)
def test_only_what_the_template_writes_is_control(kind):
    """A message with and without a spelling, in the same template: the control tokens stay the same."""
    tokenizer = ALL[kind]()
    special = SpecialTokens(tokenizer)

    def render(messages):
        return "".join(f"<s>{message['content'].strip()}<|im_end|>\n" for message in messages)

    (start, end) = tokenizer.convert_tokens_to_ids(["<s>", "<|im_end|>"])
    harmless = special.rendered(render, [{"role": "user", "content": "the model"}])
    assert special.unmarked(harmless) == "<s>the model<|im_end|>\n" and special.spelt(harmless) == {}
    assert special.encode(harmless, parse=False).ids == ids_of(tokenizer, "<s>the model<|im_end|>\n")
    messages = [{"role": "user", "content": " the</s><|im_end|>model "}, {"role": "assistant", "content": "<s>a"}]
    text = special.rendered(render, messages)
    assert "the</s><|im_end|>model" in text and special.spelt(text) == {"</s>": 1, "<|im_end|>": 1, "<s>": 1}
    ids = special.encode(text, parse=False).ids
    assert [token for token in ids if token in (start, end)] == [start, end, start, end]
    assert ids[0] == start and tokenizer.convert_tokens_to_ids("</s>") not in ids
    decoded = tokenizer.decode([token for token in ids if token not in (start, end)])
    assert decoded.replace(" ", "") == "the</s><|im_end|>model\n<s>a\n"
    assert special.encode(text, parse=True).ids == ids_of(tokenizer, render(messages))


def test_parts_between_control_tokens_are_read_as_the_tokenizer_reads_them():
    """No blank in front of a part behind a control token, where only a text's beginning has one."""
    tokenizer = metaspace(first=True)
    special = SpecialTokens(tokenizer)
    text = special.rendered(lambda m: f"<s>{m[0]['content']}<|im_end|>a", [{"role": "user", "content": "the</s>"}])
    spelling = ids_of(tokenizer, "a</s>", split_special_tokens=True)[len(ids_of(tokenizer, "a")) :]
    front, back = ids_of(tokenizer, "<s>the"), ids_of(tokenizer, "<s><|im_end|>a")[1:]
    assert special.encode(text, parse=False).ids == [*front, *spelling, *back]
    assert [front[0], back[0]] == tokenizer.convert_tokens_to_ids(["<s>", "<|im_end|>"])


def test_a_tokenizer_that_takes_no_advice_is_refused():
    class Deaf(Letters):
        def tokenize(self, text, **_):
            return super().tokenize(text)

    special = SpecialTokens(letters(Deaf))
    assert special.encode("a model", parse=False).ids == special.encode("a model", parse=True).ids
    with pytest.raises(LongEvalError, match="'</s>'") as error:
        special.encode("a</s>", parse=False)
    assert "--parse-special" in error.value.remedy


def template(single):
    return processors.TemplateProcessing(
        single=single, special_tokens=[(name, place) for place, name in enumerate(SPECIALS)]
    )


@pytest.mark.parametrize(
    ("processor", "names", "own", "asked"),
    [
        (None, {}, (), (0,)),
        (template("<s> $A"), {}, (0,), (0,)),
        (template("<s> $A </s>"), {}, (0,), (0,)),  # a suffix is no part of it
        (template("$A </s>"), {}, (), (0,)),
        (template("<|im_end|> </s> $A"), {"bos_token": None}, (2, 1), (2, 1)),
        (template("<|im_end|> $A"), {}, (2,), (2,)),  # not what is called BOS
        (processors.BertProcessing(("</s>", 1), ("<|im_end|>", 2)), {"bos_token": None}, (2,), (2,)),
        (None, {"bos_token": None}, (), ()),
    ],
)
def test_what_a_tokenizer_puts_in_front(processor, names, own, asked):
    tokenizer = byte_level(processor, **names)
    assert (own_prefix(tokenizer), prefix_ids(tokenizer)) == (own, asked)


def test_a_prefix_that_a_text_may_hold_too():
    tokenizer = byte_level()
    letter = tokenizer.convert_tokens_to_ids("a")
    for front in ([letter], [letter, 0], [0, letter, 0]):
        pieces = [{"id": "front", "ids": front, "tokens": ["x"] * len(front)}]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="front $A", special_tokens=pieces
        )
        assert own_prefix(tokenizer) == tuple(front)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "")
    assert own_prefix(tokenizer) == (0, letter, 0)


def test_tokens_with_a_role_are_special_whatever_the_file_calls_them():
    tokenizer = byte_level()
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in plain["added_tokens"]:
        token["special"] = False
    tokenizer = fast(Tokenizer.from_str(json.dumps(plain)))
    tokenizer.added_tokens_decoder[1].special = False
    special = SpecialTokens(tokenizer)
    assert {"<s>", "</s>"} <= set(special.ids)
    assert {0, 1}.isdisjoint(special.encode("<s>a</s>", parse=False).ids)
    assert special.encode("<s>a</s>", parse=True).ids[0] == 0


def test_a_note_counts_and_names():
    found = {"<s>": 1, "</s>": 1200, "<a>": 2, "<b>": 3}
    assert "1,206 times (</s>, <b>, <a>, …)" in spelt_note("book", "m", found, parsed=False)
    assert "once (<s>)" in spelt_note("book", "m", {"<s>": 1}, parsed=True)
