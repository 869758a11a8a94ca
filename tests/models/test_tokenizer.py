"""Whatever class a model's config names, its tokenizer gives the ids that its own file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from folders import edit_config, tokenizer_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from longeval.errors import LongEvalError
from longeval.models.tokenizer import PROBE, is_stock, tokenizer_folder

PROSE = Path(__file__).read_text(encoding="utf-8").replace("<", "").replace("▁", "")
"""Some text, without anything that is a special token, or that sentencepiece reads as a blank."""
TEXTS = (*PROBE, "ab", "a</s>b", " <s> a", "")
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(*, digits=False, split=None, merges=(("a", "b"), ("Ġ", "a")), extra=(), **model) -> Tokenizer:
    """A byte-level BPE with the whole alphabet and a few merges; `<s>` is 0 and `</s>` is 1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, *("".join(merge) for merge in merges), *extra]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), **model))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    steps += [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    steps += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def metaspace(*, prepend=False) -> Tokenizer:
    """A sentencepiece-like BPE with bytes, as Llama 2's (with `prepend`) or Mistral's newer files are."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "▁a", "ab", "▁▁"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "▁"), ("▁", "a"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(back)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def lowered() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def prefixed(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """With special tokens that its post-processor puts in front."""
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(tokens)} $A",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )
    return tokenizer


KINDS = {
    "byte_level": byte_level,
    "digits": lambda: byte_level(digits=True),
    "whole_words": lambda: byte_level(split=LLAMA3, extra=("Hello", "ĠHello"), ignore_merges=True),
    "metaspace": metaspace,
    "prepend": lambda: metaspace(prepend=True),
    "lowered": lowered,
    "bos": lambda: prefixed(byte_level(), "<s>"),
}


def save(folder: Path, tokenizer: Tokenizer, named: str | None, **settings) -> Tokenizer:
    """Puts a tokenizer of a class into a model's folder, and returns it as the file has it."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings |= {"tokenizer_class": named} if named else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def check_ids(tokenizer, expected: Tokenizer):
    """Compares ids of many texts, with and without what the post-processor adds.

    RULER's generators and vLLM load the tokenizer once more, from a folder of its own.
    """
    for opened in (tokenizer, AutoTokenizer.from_pretrained(tokenizer_folder(tokenizer))):
        for text in TEXTS:
            for special in (True, False):
                ids = expected.encode(text, add_special_tokens=special).ids
                assert opened(text, add_special_tokens=special).input_ids == ids, (text, special)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "named", ["LlamaTokenizerFast", "GPT2TokenizerFast", "Qwen2Tokenizer", "PreTrainedTokenizerFast", None]
)
def test_the_file_holds_under_any_class(kind, named, llama):
    file = save(llama, KINDS[kind](), named)
    tokenizer = tokenizer_of(llama)
    check_ids(tokenizer, file)
    if named in (None, "PreTrainedTokenizerFast"):
        assert is_stock(tokenizer)
    if named == "LlamaTokenizerFast" and kind in ("byte_level", "digits"):
        assert not is_stock(tokenizer)
    if kind in ("byte_level", "digits", "prepend"):
        assert all(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text for text in PROBE)


@pytest.mark.parametrize("named", ["T5Tokenizer", "XLMRobertaTokenizer", "AlbertTokenizer"])
def test_a_class_that_cannot_be_made_of_the_file_is_passed_over(named, llama):
    file = save(llama, byte_level(), named)
    tokenizer = tokenizer_of(llama)
    check_ids(tokenizer, file)
    assert not is_stock(tokenizer)


@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_dropout_is_for_training(named, llama):
    save(llama, byte_level(dropout=0.9), named)
    check_ids(tokenizer_of(llama), byte_level())


@pytest.mark.parametrize("digits", [False, True])
def test_a_class_that_does_as_the_file_says_is_stock(digits, llama):
    """Engines then take the model's own files; numbers that it cuts in another way need a copy."""
    tokenizer = byte_level(digits=digits, merges=[("1", "2")], extra=("<|endoftext|>",))
    save(llama, tokenizer, "GPT2Tokenizer", eos_token="<|endoftext|>")
    assert is_stock(tokenizer_of(llama)) is not digits


@pytest.mark.parametrize("model_type", ["qwen2", "gemma3_text", "gpt_neox", "mistral"])
@pytest.mark.parametrize("named", ["LlamaTokenizer", None])
def test_the_file_holds_in_any_type_of_model(model_type, named, llama):
    file = save(llama, byte_level(digits=True), named)
    edit_config(llama, model_type=model_type)
    check_ids(tokenizer_of(llama), file)


def test_special_tokens_that_a_class_has_by_default_stay_where_the_vocabulary_has_them(llama):
    file = save(llama, byte_level(), "LlamaTokenizer")
    tokenizer = tokenizer_of(llama)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token) == (0, 1, None)
    assert len(tokenizer) == file.get_vocab_size()
    assert tokenizer.padding_side == "left"
    assert "token_type_ids" not in tokenizer("a")


def test_settings_of_the_config_hold(llama):
    settings = {"bos_token": "</s>", "eos_token": "<s>", "chat_template": "x", "model_max_length": 77}
    save(llama, byte_level(digits=True), "GPT2Tokenizer", **settings)
    tokenizer = tokenizer_of(llama)
    assert {name: getattr(tokenizer, name) for name in settings} == settings


@pytest.mark.parametrize("stated", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_a_prefix_that_is_no_bos_stays(stated, named, llama):
    file = save(llama, prefixed(byte_level(), "[gMASK]", "<sop>"), named, bos_token=None, eos_token="</s>", **stated)
    tokenizer = tokenizer_of(llama)
    check_ids(tokenizer, file)
    assert tokenizer("").input_ids == [file.token_to_id("[gMASK]"), file.token_to_id("<sop>")]


@pytest.mark.parametrize("named", ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer"])
def test_a_tokenizer_without_a_vocabulary_is_refused(named, llama):
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    with pytest.raises(LongEvalError, match=r"tokenizer\.json is missing"):
        tokenizer_of(llama)


def test_merges_under_a_class_that_doesnt_read_them_are_refused(llama):
    (llama / "tokenizer.json").unlink()
    byte_level().model.save(str(llama))
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(LongEvalError, match=r"tokenizer\.json is missing"):
        tokenizer_of(llama)
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = tokenizer_of(llama)
    assert [tokenizer(text).input_ids for text in PROBE] == [byte_level().encode(text).ids for text in PROBE]


SPM = {
    "llama": {"model_type": "bpe"},
    "no_prefix": {"model_type": "bpe", "add_dummy_prefix": False},
    "no_bytes": {"model_type": "bpe", "byte_fallback": False},
    "unigram": {"model_type": "unigram"},
    "nfkc": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "symbols": {"model_type": "bpe", "user_defined_symbols": ["▁▁", "▁▁▁", "<x>"], "add_dummy_prefix": False},
}


def put_sentencepiece(folder: Path, kind: str) -> sentencepiece.SentencePieceProcessor:
    """Trains a small sentencepiece model, which becomes the folder's tokenizer."""
    settings = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    settings |= {"vocab_size": 400, "split_digits": True, "hard_vocab_limit": False, "minloglevel": 2}
    (folder / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(PROSE.splitlines()), model_prefix=str(folder / "tokenizer"), **(settings | SPM[kind])
    )
    (folder / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("kind", SPM)
def test_a_sentencepiece_model_gives_its_own_ids(kind, llama):
    model = put_sentencepiece(llama, kind)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": "x"}
    for named in ("LlamaTokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"):
        (llama / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": named}))
        tokenizer = tokenizer_of(llama)
        again = AutoTokenizer.from_pretrained(tokenizer_folder(tokenizer))
        for text in (*PROBE, " " * 5 + "a", "<x> y", PROSE[:3000]):
            assert tokenizer(text).input_ids == again(text).input_ids == [1, *model.encode(text)], text
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template) == (1, 2, "x")


def test_tokens_that_were_added_to_a_sentencepiece_model_keep_their_ids(llama):
    put_sentencepiece(llama, "llama")
    plain = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    added = {"400": plain | {"content": "<|im_start|>", "special": True}}
    added |= {"401": plain | {"content": "<|x|>", "special": False}}
    settings = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = tokenizer_of(llama)
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|x|>"]) == [400, 401]
    assert "<|x|>" not in tokenizer.all_special_tokens
    assert tokenizer("<|x|>", add_special_tokens=False).input_ids == [401]
