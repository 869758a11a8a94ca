"""Tokenizers of GGUF files: how they split, what they add, and what is refused."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import gguf
import pytest
from folders import tokenizer_of
from sentencepiece import SentencePieceProcessor
from tiny_gguf import add_field, write_llama
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

from longeval.data.sources import open_source
from longeval.errors import LongEvalError
from longeval.models import embedded
from longeval.models.gguf.header import read_header
from longeval.models.gguf.tokenizer import RULES, build_tokenizer
from longeval.models.load import load_tokenizer
from longeval.models.resolve import resolve
from longeval.models.tokenizer import PROBE, tokenizer_notes

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = [(f"<0x{byte:02X}>", 6) for byte in range(256)]


def build(path: Path, tokens, *, architecture="llama", merges=None, scores=None, **fields):
    """The tokenizer of a GGUF with a tokenizer and nothing else; `tokens` are pairs of a token and its kind."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    if merges is not None:
        writer.add_token_merges(list(merges))
    if scores is not None:
        writer.add_token_scores(scores)
    for key, value in fields.items():
        add_field(writer, f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return build_tokenizer(read_header(str(path)))


def byte_level(path: Path, *, merges=(), special=("<s>", "</s>"), own=(), words=(), **fields):
    """The tokenizer of a byte-level file: special tokens, the user's own, the alphabet, merged tokens, and words."""
    merged = [merge.replace(" ", "") for merge in merges]
    tokens = [(token, 3) for token in special] + [(token, 4) for token in own]
    tokens += [(token, 1) for token in (*ALPHABET, *merged, *words)]
    settings = {"model": "gpt2", "bos_token_id": 0, "eos_token_id": 1} | fields
    return build(path, tokens, merges=merges, **settings)


def sentencepiece(path: Path, tokens=(), **fields):
    """The tokenizer of a file whose tokens are text; `tokens` are pairs of a token and its kind, best first."""
    letters = [(letter, 1) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *BYTES, *tokens, *letters]
    scores = [-float(index) for index in range(len(tokens))]
    settings = {"model": "llama", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0} | fields
    return build(path, tokens, scores=scores, **settings)


TEXT = "I'll  pay 12345,67 x²\n\n\tfor(NaïveUsers): 漢字ab 's/"
SPLIT = {
    "gpt-2": "I|'ll| | pay| 12345|,|67| x|²|\n\n|\t|for|(|NaïveUsers|):| 漢字ab| '|s|/",
    "smollm": "I|'ll| | pay| |1|2|3|4|5|,|6|7| x|²|\n\n|\t|for|(|NaïveUsers|):| 漢字ab| '|s|/",
    "llama-bpe": "I|'ll| | pay| |123|45|,|67| x|²|\n\n|\tfor|(NaïveUsers|):| 漢字ab| '|s|/",
    "qwen2": "I|'ll| | pay| |1|2|3|4|5|,|6|7| x|²|\n\n|\tfor|(NaïveUsers|):| 漢字ab| '|s|/",
    "tekken": "I|'ll| | pay| |1|2|3|4|5|,|6|7| x|²|\n\n|\tfor|(Naïve|Users|):| 漢字ab| '|s|/",
    "gpt-4o": "I'll| | pay| |123|45|,|67| x|²|\n\n|\tfor|(Naïve|Users|):| 漢字ab| '|s|/",
    "deepseek-v3": "I|'ll| | pay| |123|45|,|67| x|²|\n\n|\tfor|(Na|ïveUsers|):| |漢字|ab| '|s|/",
    "deepseek-llm": "I|'|ll| | pay| |12345|,|67| x|²|\n|\n|\tfor|(|Na|ï|veUsers|):| |漢字|ab| '|s|/",
    "deepseek-coder": "I|'|ll| | pay| |1|2|3|4|5|,|6|7| x|²|\n|\n|\tfor|(|NaïveUsers|):| |漢字|ab| '|s|/",
    "falcon": "I|'|ll| | pay| |123|45|,|67| x|²|\n\n|\t|for|(|NaïveUsers|):| 漢字ab| |'|s|/",
    "default": "I|'|ll| | pay| |123|45|,|67| x|²|\n\n|\t|for|(|NaïveUsers|):| 漢字ab| |'|s|/",
    "bloom": "I'll| | pay| 12345|,|67| x²|\n\n\t|for|(|NaïveUsers|)|:| 漢字ab| 's/",
    "viking": "I'll| | pay| |1|2|3|4|5|,|6|7| x|²|\n\n\t|for|(|NaïveUsers|)|:| 漢字ab| 's/",
    "seed-coder": "I|'ll| | pay| |1|2|3|4|5|,|6|7| x|²|\n\n|\tfor|(NaïveUsers|):| 漢字ab| '|s|/",
    "tiny_aya": "I'll| | pay| |12|345|,|67| x|²|\n\n|\tfor|(Naïve|Users|):| 漢字ab| '|s|/",
}
"""A text as llama.cpp's expressions divide it, by hand."""


def splitter(name):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated") for split in RULES[name].splits])


@pytest.mark.parametrize("name", SPLIT)
def test_how_a_rule_splits(name):
    assert [piece for piece, _ in splitter(name).pre_tokenize_str(TEXT)] == SPLIT[name].split("|")


@pytest.mark.parametrize("name", RULES)
def test_every_rule_keeps_the_whole_text(name):
    for text in PROBE:
        assert "".join(piece for piece, _ in splitter(name).pre_tokenize_str(text)) == text


@pytest.mark.parametrize(
    "names", ["llama3 llama-v3 pixtral", "smollm starcoder refact command-r", "gpt-2 mpt olmo", "kormo stablelm2"]
)
def test_names_of_one_rule_are_one_rule(names):
    assert len({RULES[name] for name in names.split()}) == 1


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("smollm", ["Ġ", "1", "2", "3", "4"]),
        ("gpt-2", ["Ġ12", "3", "4"]),
        ("llama-bpe", ["Ġ", "123", "4"]),
        ("qwen2", ["Ġ", "1", "2", "3", "4"]),
    ],
)
def test_numbers_are_cut_as_the_file_says(tmp_path, pre, pieces):
    merges = ["Ġ 1", "Ġ1 2", "1 2", "12 3"]
    tokenizer = byte_level(tmp_path / "x.gguf", merges=merges, pre=pre, add_bos_token=False)
    assert tokenizer.convert_ids_to_tokens(tokenizer(" 1234").input_ids) == pieces
    expected = [unicodedata.normalize("NFC", text) if pre == "qwen2" else text for text in PROBE]
    assert [tokenizer.decode(tokenizer(text).input_ids) for text in PROBE] == expected


@pytest.mark.parametrize(("pre", "stock"), [("qwen2", Qwen2Tokenizer), ("qwen35", Qwen3_5Tokenizer)])
def test_characters_are_composed_where_the_original_does(pre, stock, tmp_path):
    ours = byte_level(tmp_path / "x.gguf", merges=["a b"], pre=pre, add_bos_token=False)
    original = stock(vocab=ours.get_vocab(), merges=[("a", "b")])
    for text in (*PROBE, "e\u0301e\u0301", "\u1100\u1161"):
        assert ours(text).input_ids == original(text).input_ids
    bare = byte_level(tmp_path / "y.gguf", merges=["a b"], pre="deepseek-r1-qwen", add_bos_token=False)
    assert bare.decode(bare("e\u0301").input_ids) == "e\u0301"


@pytest.mark.parametrize(("pre", "whole"), [("llama-bpe", True), ("tekken", True), ("qwen2", False), ("dbrx", False)])
def test_words_that_no_merges_lead_to(tmp_path, pre, whole):
    """Llama 3 and Tekken take a word that is a token whole; others don't."""
    tokenizer = byte_level(tmp_path / "x.gguf", words=["Ġword"], pre=pre, add_bos_token=False)
    assert (len(tokenizer(" word").input_ids) == 1) is whole


@pytest.mark.parametrize(
    ("key", "value"), [("pre", "kimi-k2"), ("pre", "something"), ("model", "t5"), ("model", "bert")]
)
def test_a_rule_or_a_kind_that_isnt_known_is_refused(key, value, tmp_path):
    with pytest.raises(LongEvalError, match=rf"tokenizer\.ggml\.{key} = {value}") as caught:
        byte_level(tmp_path / "x.gguf", **{key: value})
    assert "original model" in caught.value.remedy


def test_a_file_that_names_no_rule_is_split_by_the_default_and_said(tmp_path):
    unstated = byte_level(tmp_path / "x.gguf", merges=["1 2"])
    stated = byte_level(tmp_path / "y.gguf", merges=["1 2"], pre="default")
    assert [unstated(text).input_ids for text in PROBE] == [stated(text).input_ids for text in PROBE]
    assert tokenizer_notes(stated) == ()
    unstated.save_pretrained(tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (note,) = tokenizer_notes(load_tokenizer(resolve(str(tmp_path / "folder"), weights=False)))
    assert "tokenizer.ggml.pre" in note


def test_special_tokens_that_are_no_ascii_keep_their_ids(tmp_path):
    """DeepSeek's, which transformers would add to the vocabulary once more."""
    special = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    tokenizer = byte_level(tmp_path / "x.gguf", special=special, own=["<think>", "    "], pre="deepseek-v3")
    assert (tokenizer.bos_token, tokenizer.bos_token_id, tokenizer.eos_token_id) == (special[0], 0, 1)
    assert len(tokenizer) == 4 + 256
    assert tokenizer("<think>").input_ids == [2]
    assert tokenizer("a    b", add_special_tokens=False).input_ids[1] == 3  # found in the text, whatever the rule
    assert tokenizer.decode([0, 2, 3, 1], skip_special_tokens=True) == "<think>    "


@pytest.mark.parametrize("stated", [True, False])
def test_bos_and_eos_are_added_as_the_file_says(stated, tmp_path):
    tokenizer = byte_level(tmp_path / "x.gguf", pre="qwen2", add_bos_token=stated, add_eos_token=stated)
    assert tokenizer("").input_ids == [0, 1] * stated
    tokenizer.save_pretrained(tmp_path / "saved")
    assert Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).encode("").ids == [0, 1] * stated


@pytest.mark.parametrize("prefix", [True, False, None])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
def test_the_blank_in_front(prefix, architecture, tmp_path):
    fields = {} if prefix is None else {"add_space_prefix": prefix}
    tokens = [("▁ab", 1), ("▁a", 1), ("ab", 1), ("▁▁", 1)]
    path = tmp_path / "x.gguf"
    tokenizer = sentencepiece(path, tokens, architecture=architecture, add_bos_token=False, **fields)
    has_prefix = architecture != "gemma3" if prefix is None else prefix
    for text, plain, prefixed in (
        ("ab", ["ab"], ["▁ab"]),
        (" ab", ["▁ab"], ["▁", "▁ab"]),
        ("  ab", ["▁", "▁ab"], ["▁▁", "▁ab"]),
        ("é", ["<0xC3>", "<0xA9>"], ["▁", "<0xC3>", "<0xA9>"]),
    ):
        ids = tokenizer(text).input_ids
        assert tokenizer.convert_ids_to_tokens(ids) == (prefixed if has_prefix else plain), text
        assert tokenizer.decode(ids) == text


def test_a_sentencepiece_vocabulary_gives_sentencepieces_ids(tmp_path):
    """Against the library itself, with symbols that are defined by the user, as Gemma's blanks."""
    own = [("  ", 4), ("   ", 4), ("\n\n", 4), ("<x>", 4)]
    merged = [(token, 1) for token in ("th", "▁th", "the", "▁the", "in", "ing", "er", "▁a", "an", "▁an", "and", "▁and")]
    tokenizer = sentencepiece(tmp_path / "x.gguf", [*own, *merged], architecture="gemma3", add_bos_token=False)
    header = read_header(str(tmp_path / "x.gguf"))
    proto = import_protobuf().ModelProto()
    for index, kind in enumerate(header.fields["tokenizer.ggml.token_type"]):
        token = tokenizer.convert_ids_to_tokens(index).replace(" ", "▁")
        proto.pieces.add(piece=token, type=kind, score=header.fields["tokenizer.ggml.scores"][index])
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    library = SentencePieceProcessor(model_proto=proto.SerializeToString())
    for text in (*PROBE, "the thing and\n\n\nanother    <x>     other", "  the", " and "):
        assert tokenizer(text).input_ids == library.encode(text), text


def test_gemma4_merges_raw_text_between_newlines(tmp_path):
    words = [(token, 1) for token in ("▁", "a", "\n", "▁a", "\n\n", "a\n")]
    tokens = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *words, *BYTES]
    fields = {"model": "gemma4", "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    merges = ["a \n", "▁ a", "\n \n"]
    tokenizer = build(tmp_path / "x.gguf", tokens, architecture="gemma4", merges=merges, **fields)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n a").input_ids) == ["<s>", "a", "\n\n", "▁a"]


@pytest.mark.parametrize(
    ("tokens", "fields", "named"),
    [
        ("aa", {"model": "gpt2", "pre": "gpt-2", "merges": []}, "tokens"),
        ("ab", {"model": "gpt2", "pre": "gpt-2", "merges": ["a b"]}, "merges"),
        ("a", {"model": "llama"}, "scores"),
    ],
)
def test_a_vocabulary_that_cant_be_is_refused(tmp_path, tokens, fields, named):
    with pytest.raises(LongEvalError, match=rf"tokenizer\.ggml\.{named}"):
        build(tmp_path / "x.gguf", [(token, 1) for token in tokens], **fields)


def test_a_converted_file_keeps_its_tokenizer(tmp_path):
    path = write_llama(tmp_path / "tiny.gguf")
    converted, own = tokenizer_of(path), build_tokenizer(read_header(str(path)))
    for text in ("ab c", " a  b", "<bos>a<eos>"):
        assert converted(text).input_ids == own(text).input_ids
    assert (converted.bos_token, converted.eos_token, len(converted)) == ("<bos>", "<eos>", 12)


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("LONGEVAL_DATA", ""), "leval")),
    reason="needs LONGEVAL_DATA with leval/",
)
@pytest.mark.usefixtures("user_cache")
def test_smollm2_cuts_numbers_into_digits(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer = tokenizer_of(embedded.EMBEDDED)
    assert tokenizer("Hello world! 123").input_ids == [19556, 905, 17, 216, 33, 34, 35]
    documents = open_source("gov_report").documents()
    assert max(len(tokenizer(document.text).input_ids) for document in documents) == 24280
