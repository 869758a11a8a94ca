"""Tokenised documents: byte ends that telescope, digests, the cache and its failures."""

import logging
import time

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from longeval.data.documents import Text
from longeval.data.tokens import _read_table, tokenise, tokenizer_digest

TEXT = "Once upon a time, naïve 日本語 text — with emoji 👩‍🚀🙂 and\ttabs,\n\nnew lines…  and   blanks. "


def byte_level(*, trim_offsets=False, vocab_size=300):
    """GPT-2-like: bytes, so that a rare character is split over several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["once upon a time with new lines and blanks"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=8)


def metaspace():
    """Llama-2-like: a blank in front, BOS by template, unknown characters as bytes."""
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    letters = list("▁Onceuptimwhaldbk.,")
    vocab = {token: n for n, token in enumerate(["<unk>", "<s>", *bytes_, *letters, "▁u", "▁t"])}
    model = models.BPE(
        vocab=vocab, merges=[("▁", "u"), ("▁", "t")], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
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
    return tokenise(Text(name="d", text=text), tokenizer, tokenizer_digest(tokenizer), cache)


@pytest.mark.parametrize("tokenizer", [byte_level(), byte_level(trim_offsets=True), metaspace()])
@pytest.mark.parametrize("text", [TEXT, "日本", " ", "a", "👩‍🚀" * 3, "\n\n x \n\n", TEXT * 20])
def test_byte_ends_never_step_back_and_end_with_the_text(tokenizer, text):
    table = tokenised(text, tokenizer).load()
    assert table.tokens_T.dtype == np.int32
    assert len(table.tokens_T) == len(table.byte_ends_T) > 0
    assert np.all(np.diff(table.byte_ends_T, prepend=0) >= 0)
    assert table.byte_ends_T[-1] == len(text.encode())


@pytest.mark.parametrize("tokenizer", [byte_level(), metaspace()])
def test_byte_ends_agree_with_the_text_up_to_each_character(tokenizer):
    """Where a token ends at a character's end, the bytes are those of the text so far, encoded."""
    table = tokenised(TEXT, tokenizer).load()
    char_ends = [
        end for _, end in tokenizer(TEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ]
    expected = [len(TEXT[:end].encode()) for end in char_ends]
    assert table.byte_ends_T.tolist() == expected


def test_a_character_split_over_tokens_counts_its_bytes_once():
    table = tokenised("a🙂b", byte_level()).load()
    assert len(table.tokens_T) == 6
    assert table.byte_ends_T.tolist() == [1, 5, 5, 5, 5, 6]


def test_trimmed_offsets_lose_no_bytes():
    """Offsets trimmed of blanks step back; the bytes of a stretch still come to what the text has."""
    plain = tokenised(TEXT, byte_level()).load()
    trimmed = tokenised(TEXT, byte_level(trim_offsets=True)).load()
    assert np.array_equal(plain.tokens_T, trimmed.tokens_T)
    assert plain.byte_ends_T[-1] == trimmed.byte_ends_T[-1]


def test_a_token_that_stands_for_no_text_takes_no_bytes_back():
    class WithOffsets:
        is_fast = True

        def __call__(self, text, **_):
            return {"input_ids": [1, 2, 3, 4], "offset_mapping": [(0, 2), (0, 0), (2, 4), (3, 3)]}

    document = tokenise(Text(name="d", text="éaébc"), WithOffsets(), "digest", None)
    assert document.byte_ends().tolist() == [3, 3, 6, 7]


def test_no_special_tokens_are_added():
    assert tokenised("time", metaspace()).tokens()[0] != 1
    assert metaspace()("time")["input_ids"][0] == 1


def test_a_slow_tokenizer_has_no_byte_ends(tmp_path):
    tokenizer = SlowTokenizer({"a": 5, "b": 7})
    for _ in range(2):
        document = tokenised("abba", tokenizer, str(tmp_path))
        assert document.tokens().tolist() == [5, 7, 7, 5]
        assert document.byte_ends() is None


def test_an_empty_document_has_no_tokens(tmp_path):
    document = tokenised("", byte_level(), str(tmp_path))
    assert document.num_tokens == len(document.tokens()) == len(document.byte_ends()) == 0


def test_a_text_longer_than_the_model_is_no_warning(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        tokenised(TEXT * 30, byte_level())
    out, err = capfd.readouterr()
    assert "longer than" not in out + err + caplog.text


def test_the_second_time_comes_from_the_cache(tmp_path):
    first = tokenised(TEXT, byte_level(), str(tmp_path))
    assert first.held is None

    def never(*args, **kwargs):
        raise AssertionError("tokenised again")

    digest = tokenizer_digest(byte_level())
    second = tokenise(Text(name="other name", text=TEXT), never, digest, str(tmp_path))
    assert (second.digest, second.path, second.num_tokens) == (first.digest, first.path, first.num_tokens)
    assert first.path == str(tmp_path / "tokens" / first.digest[:2] / f"{first.digest}.tokens")
    fresh = tokenised(TEXT, byte_level())
    assert np.array_equal(second.tokens(), fresh.tokens())
    assert np.array_equal(second.byte_ends(), fresh.byte_ends())


@pytest.mark.parametrize("damage", [b"", b"not a zip", "half", "flipped", "another document's"])
def test_a_damaged_cache_file_is_made_again(tmp_path, damage):
    document = tokenised(TEXT, byte_level(), str(tmp_path))
    with open(document.path, "rb") as file:
        whole = bytearray(file.read())
    if damage == "half":
        content = whole[: len(whole) // 2]
    elif damage == "flipped":
        content = whole[:60] + bytes(b ^ 0xFF for b in whole[60:90]) + whole[90:]
    elif damage == "another document's":
        other = tokenised("another", byte_level(), str(tmp_path))
        with open(other.path, "rb") as file:
            content = file.read()
    else:
        content = damage
    with open(document.path, "wb") as file:
        file.write(content)
    again = tokenised(TEXT, byte_level(), str(tmp_path))
    assert np.array_equal(again.tokens(), tokenised(TEXT, byte_level()).tokens())
    with open(document.path, "rb") as file:
        assert len(file.read()) == len(whole)


def test_no_damaged_byte_of_a_cache_file_goes_unseen(tmp_path):
    document = tokenised(TEXT, byte_level(), str(tmp_path))
    with open(document.path, "rb") as file:
        whole = file.read()
    for place in range(0, len(whole), 3):
        with open(document.path, "wb") as file:
            file.write(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert _read_table(document.path) is None


def test_a_cache_file_that_vanished_is_named(tmp_path):
    document = tokenised(TEXT, byte_level(), str(tmp_path))
    (tmp_path / "tokens" / document.digest[:2] / f"{document.digest}.tokens").unlink()
    with pytest.raises(FileNotFoundError, match=document.digest):
        document.tokens()


def test_without_a_cache_that_can_be_written_the_tokens_are_held(tmp_path):
    (tmp_path / "file").write_text("in the way")
    document = tokenised(TEXT, byte_level(), str(tmp_path / "file"))
    assert document.path is None
    assert np.array_equal(document.tokens(), tokenised(TEXT, byte_level()).tokens())


def test_digests_change_with_text_and_tokenizer_and_nothing_else():
    tokenizer = byte_level()
    digest = tokenizer_digest(tokenizer)
    assert tokenizer_digest(byte_level()) == digest
    assert tokenizer_digest(byte_level(vocab_size=270)) != digest
    assert tokenizer_digest(byte_level(trim_offsets=True)) != digest
    tokenizer(["a", "b"], truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == digest
    assert tokenizer_digest(SlowTokenizer({"a": 1})) != tokenizer_digest(SlowTokenizer({"a": 2}))
    assert tokenised("a", tokenizer).digest == tokenised("a", byte_level()).digest
    assert tokenised("a", tokenizer).digest != tokenised("b", tokenizer).digest
    assert tokenised("a", tokenizer).digest != tokenised("a", metaspace()).digest


def test_a_call_with_truncation_before_does_not_cut_documents():
    tokenizer = byte_level()
    whole = tokenised(TEXT, tokenizer).num_tokens
    tokenizer([TEXT], truncation=True, max_length=4)
    assert tokenised(TEXT, tokenizer).num_tokens == whole


def test_a_megabyte_takes_seconds():
    started = time.monotonic()
    document = tokenised(TEXT * (1_000_000 // len(TEXT.encode())), byte_level())
    assert document.num_tokens > 300_000
    assert time.monotonic() - started < 30
