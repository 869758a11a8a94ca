"""Tokenised documents: byte ends that telescope, digests, the cache and its failures."""

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from byte_level import byte_level
from tokenizers import AddedToken, Tokenizer, models, normalizers, processors
from transformers import PreTrainedTokenizerFast

from longeval.data.documents import Text
from longeval.data.tokens import _read_table, tokenise, tokenizer_digest

TEXT = "Once upon a time, naïve 日本語 text — with emoji 👩‍🚀🙂 and\ttabs,\n\nnew lines…  and   blanks. "


def trimming():
    """Its offsets leave out blanks, so that they step back."""
    return byte_level(processors.ByteLevel(trim_offsets=True))


def metaspace():
    """Llama-2-like: a blank in front, BOS by template, unknown characters as bytes."""
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    letters = list("▁Onceuptimwhaldbk.,")
    vocab = {token: n for n, token in enumerate(["<unk>", "<s>", *bytes_, *letters, "▁u", "▁t"])}
    merges = [("▁", "u"), ("▁", "t")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", model_max_length=8)


class SlowTokenizer:
    """As slow tokenizers are: no offsets."""

    is_fast = False
    added_tokens_decoder: dict = {}  # noqa: RUF012 (never changed)

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def get_vocab(self):
        return self.vocabulary

    def __call__(self, text, *, add_special_tokens, return_offsets_mapping, **_):
        assert not add_special_tokens
        assert not return_offsets_mapping
        return {"input_ids": [self.vocabulary[letter] for letter in text]}


def tokenised(text, tokenizer, cache=None):
    return tokenise(Text(name="d", text=text), tokenizer, tokenizer_digest(tokenizer), cache and str(cache))


def same_tokens(document, other):
    both = zip((document.tokens(), document.byte_ends()), (other.tokens(), other.byte_ends()), strict=True)
    return all(np.array_equal(here, there) for here, there in both)


@pytest.mark.parametrize("make", [byte_level, trimming, metaspace])
@pytest.mark.parametrize("text", [TEXT, "日本", " ", "a", "👩‍🚀" * 3, "\n\n x \n\n", TEXT * 20])
def test_byte_ends_are_those_of_the_characters_and_never_step_back(make, text):
    tokenizer = make()
    table = tokenised(text, tokenizer).load()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert table.tokens_T.dtype == np.int32
    assert table.tokens_T.tolist() == encoded["input_ids"]
    assert np.all(np.diff(table.byte_ends_T, prepend=0) >= 0)
    assert table.byte_ends_T[-1] == len(text.encode())
    if make is not trimming:
        assert table.byte_ends_T.tolist() == [len(text[:end].encode()) for _, end in encoded["offset_mapping"]]


def test_a_character_split_over_tokens_counts_its_bytes_once():
    assert tokenised("a🙂b", byte_level()).byte_ends().tolist() == [1, 5, 5, 5, 5, 6]


def test_a_token_that_stands_for_no_text_takes_no_bytes_back():
    class WithOffsets:
        is_fast = True

        def __call__(self, text, **_):
            return {"input_ids": [1, 2, 3, 4], "offset_mapping": [(0, 2), (0, 0), (2, 4), (3, 3)]}

    document = tokenise(Text(name="d", text="éaébc"), WithOffsets(), "digest", None)
    assert document.byte_ends().tolist() == [3, 3, 6, 7]


def test_a_slow_tokenizer_has_no_byte_ends(tmp_path):
    tokenizer = SlowTokenizer({"a": 5, "b": 7})
    for _ in range(2):
        document = tokenised("abba", tokenizer, tmp_path)
        assert document.tokens().tolist() == [5, 7, 7, 5]
        assert document.byte_ends() is None


def test_an_empty_document_has_no_tokens(tmp_path):
    document = tokenised("", byte_level(), tmp_path)
    assert document.num_tokens == len(document.tokens()) == len(document.byte_ends()) == 0


def test_a_text_longer_than_the_model_is_no_warning(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        tokenised(TEXT * 30, byte_level())
    out, err = capfd.readouterr()
    assert "longer than" not in out + err + caplog.text


def test_the_second_time_comes_from_the_cache(tmp_path):
    first = tokenised(TEXT, byte_level(), tmp_path)
    assert first.held is None

    def never(*args, **kwargs):
        raise AssertionError("tokenised again")

    second = tokenise(Text(name="other name", text=TEXT), never, tokenizer_digest(byte_level()), str(tmp_path))
    assert (second.digest, second.path, second.num_tokens) == (first.digest, first.path, first.num_tokens)
    assert first.path == str(tmp_path / "tokens" / first.digest[:2] / f"{first.digest}.tokens")
    assert same_tokens(second, tokenised(TEXT, byte_level()))


@pytest.mark.parametrize("damage", ["empty", "half", "another document's", "gone"])
def test_a_damaged_cache_file_is_made_again(tmp_path, damage):
    document = tokenised(TEXT, byte_level(), tmp_path)
    path = Path(document.path)
    whole = path.read_bytes()
    other = Path(tokenised("another", byte_level(), tmp_path).path).read_bytes()
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2]}.get(damage, other))
    if damage == "gone":
        path.unlink()
        with pytest.raises(FileNotFoundError, match=document.digest):
            document.tokens()
    assert same_tokens(tokenised(TEXT, byte_level(), tmp_path), tokenised(TEXT, byte_level()))
    assert path.read_bytes() == whole


def test_no_damaged_byte_of_a_cache_file_goes_unseen(tmp_path):
    path = Path(tokenised(TEXT, byte_level(), tmp_path).path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert _read_table(str(path)) is None


def test_without_a_cache_that_can_be_written_the_tokens_are_held(tmp_path):
    (tmp_path / "file").write_text("in the way")
    document = tokenised(TEXT, byte_level(), tmp_path / "file")
    assert document.path is None
    assert same_tokens(document, tokenised(TEXT, byte_level()))


def test_digests_change_with_text_and_tokenizer_and_nothing_else():
    tokenizer = byte_level()
    digest, whole = tokenizer_digest(tokenizer), tokenised(TEXT, tokenizer)
    tokenizer(["a", "b"], truncation=True, max_length=4)  # which tokenizers remember
    assert tokenizer_digest(tokenizer) == tokenizer_digest(byte_level()) == digest
    assert same_tokens(tokenised(TEXT, tokenizer), whole)
    others = (byte_level(vocab_size=270), trimming(), SlowTokenizer({"a": 1}), SlowTokenizer({"a": 2}))
    assert len({digest, *map(tokenizer_digest, others)}) == 5
    assert tokenised("a", tokenizer).digest == tokenised("a", byte_level()).digest
    assert tokenised("a", tokenizer).digest != tokenised("b", tokenizer).digest
    assert tokenised("a", tokenizer).digest != tokenised("a", metaspace()).digest


def test_a_megabyte_takes_seconds():
    started = time.monotonic()
    document = tokenised(TEXT * (1_000_000 // len(TEXT.encode())), byte_level())
    assert document.num_tokens > 300_000
    assert time.monotonic() - started < 30
