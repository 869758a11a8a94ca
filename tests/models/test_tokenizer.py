"""Whatever class a model's config names, its tokenizer gives the ids that its own file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from longeval.errors import LongEvalError
from longeval.models.load import load_tokenizer
from longeval.models.resolve import resolve
from longeval.models.tokenizer import PROBE, is_stock, tokenizer_folder

CASES = Path(__file__).parents[3] / "shared" / "cases"
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


def save(folder: Path, tokenizer: Tokenizer, *, model_type: str | None = None, **settings) -> str:
    """Puts a tokenizer into a model's folder, as `tokenizer_config.json` says in `settings`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if model_type is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))
    return str(folder)


def check_ids(tokenizer, expected: Tokenizer):
    """Compares ids of many texts, with and without what the post-processor adds."""
    for text in TEXTS:
        for special in (True, False):
            ids = expected.encode(text, add_special_tokens=special).ids
            assert tokenizer(text, add_special_tokens=special).input_ids == ids, (text, special)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "named",
    [
        "LlamaTokenizerFast",
        "GPT2TokenizerFast",
        "Qwen2Tokenizer",
        "GemmaTokenizerFast",
        "PreTrainedTokenizerFast",
        None,
    ],
)
def test_the_file_holds_under_any_class(kind, named, llama):
    folder = save(llama, KINDS[kind](), **({"tokenizer_class": named} if named else {}))
    tokenizer = load_tokenizer(resolve(folder))
    check_ids(tokenizer, Tokenizer.from_file(f"{folder}/tokenizer.json"))
    # RULER's generators and vLLM load it once more, from a folder of its own
    check_ids(
        AutoTokenizer.from_pretrained(tokenizer_folder(tokenizer)), Tokenizer.from_file(f"{folder}/tokenizer.json")
    )
    if named in (None, "PreTrainedTokenizerFast"):
        assert is_stock(tokenizer)
    if named == "LlamaTokenizerFast" and kind in ("byte_level", "digits"):
        assert not is_stock(tokenizer)
    if kind in ("byte_level", "digits", "prepend"):
        assert all(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text for text in PROBE)


@pytest.mark.parametrize("named", ["T5Tokenizer", "XLMRobertaTokenizer", "AlbertTokenizer"])
def test_a_class_that_cannot_be_made_of_the_file_is_passed_over(named, llama):
    folder = save(llama, byte_level(), tokenizer_class=named)
    tokenizer = load_tokenizer(resolve(folder))
    check_ids(tokenizer, Tokenizer.from_file(f"{folder}/tokenizer.json"))
    assert not is_stock(tokenizer)


@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_dropout_is_for_training(named, llama):
    folder = save(llama, byte_level(dropout=0.9), tokenizer_class=named)
    tokenizer = load_tokenizer(resolve(folder))
    check_ids(tokenizer, byte_level())


def test_a_class_that_does_as_the_file_says_is_stock(llama):
    """Engines then take the model's own files; numbers that it cuts in another way need a copy."""
    end = {"eos_token": "<|endoftext|>"}
    for digits in (False, True):
        tokenizer = byte_level(digits=digits, merges=[("1", "2")], extra=("<|endoftext|>",))
        folder = save(llama, tokenizer, tokenizer_class="GPT2Tokenizer", **end)
        assert is_stock(load_tokenizer(resolve(folder))) is not digits


@pytest.mark.parametrize("model_type", ["qwen2", "gemma3_text", "gpt_neox", "mistral"])
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "LlamaTokenizer", None])
def test_the_file_holds_in_any_type_of_model(model_type, named, llama):
    settings = {"tokenizer_class": named} if named else {}
    folder = save(llama, byte_level(digits=True), model_type=model_type, **settings)
    check_ids(load_tokenizer(resolve(folder)), Tokenizer.from_file(f"{folder}/tokenizer.json"))


def test_special_tokens_that_a_class_has_by_default_stay_where_the_vocabulary_has_them(llama):
    folder = save(llama, byte_level(), tokenizer_class="LlamaTokenizer")
    tokenizer = load_tokenizer(resolve(folder))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token) == (0, 1, None)
    assert len(tokenizer) == Tokenizer.from_file(f"{folder}/tokenizer.json").get_vocab_size()
    assert tokenizer.padding_side == "left"
    assert "token_type_ids" not in tokenizer("a")


def test_settings_of_the_config_hold(llama):
    settings = {"bos_token": "</s>", "eos_token": "<s>", "chat_template": "x", "model_max_length": 77}
    folder = save(llama, byte_level(digits=True), tokenizer_class="GPT2Tokenizer", **settings)
    tokenizer = load_tokenizer(resolve(folder))
    assert {name: getattr(tokenizer, name) for name in settings} == settings


@pytest.mark.parametrize("stated", [None, True, False])
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "LlamaTokenizerFast"])
def test_a_prefix_that_is_no_bos_stays(stated, named, llama):
    settings = {"bos_token": None, "eos_token": "</s>"} | ({} if stated is None else {"add_bos_token": stated})
    folder = save(llama, prefixed(byte_level(), "[gMASK]", "<sop>"), tokenizer_class=named, **settings)
    tokenizer = load_tokenizer(resolve(folder))
    file = Tokenizer.from_file(f"{folder}/tokenizer.json")
    check_ids(tokenizer, file)
    assert tokenizer("").input_ids == [file.token_to_id("[gMASK]"), file.token_to_id("<sop>")]
    check_ids(AutoTokenizer.from_pretrained(tokenizer_folder(tokenizer)), file)


@pytest.mark.parametrize("named", ["LlamaTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer", "GemmaTokenizer"])
def test_a_tokenizer_without_a_vocabulary_is_refused(named, llama):
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    with pytest.raises(LongEvalError, match=r"tokenizer can't be loaded .*tokenizer\.json is missing"):
        load_tokenizer(resolve(str(llama)))


def test_merges_under_a_class_that_doesnt_read_them_are_refused(llama):
    (llama / "tokenizer.json").unlink()
    byte_level().model.save(str(llama))
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    with pytest.raises(LongEvalError, match=r"tokenizer\.json is missing"):
        load_tokenizer(resolve(str(llama)))
    (llama / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(resolve(str(llama)))
    assert [tokenizer(text).input_ids for text in PROBE] == [byte_level().encode(text).ids for text in PROBE]


SPM = {
    "llama": {"model_type": "bpe"},
    "no_prefix": {"model_type": "bpe", "add_dummy_prefix": False},
    "no_bytes": {"model_type": "bpe", "byte_fallback": False},
    "unigram": {"model_type": "unigram"},
    "nfkc": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "symbols": {"model_type": "bpe", "user_defined_symbols": ["▁▁", "▁▁▁", "<x>"], "add_dummy_prefix": False},
}


@pytest.fixture(scope="module")
def spm_model(tmp_path_factory):
    """Trains a small sentencepiece model; returns its path."""
    import sentencepiece

    def train(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        settings = {
            "vocab_size": 400,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "hard_vocab_limit": False,
            "minloglevel": 2,
        }
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(PROSE.splitlines()),
            model_prefix=str(folder / "tokenizer"),
            **(settings | SPM[kind]),
        )
        return folder / "tokenizer.model"

    return train


@pytest.mark.parametrize("kind", SPM)
def test_a_sentencepiece_model_gives_its_own_ids(kind, spm_model, llama):
    import sentencepiece

    path = spm_model(kind)
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer.model").write_bytes(path.read_bytes())
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "chat_template": "x"}
    for named in ("LlamaTokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"):
        (llama / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": named}))
        tokenizer = load_tokenizer(resolve(str(llama)))
        again = AutoTokenizer.from_pretrained(tokenizer_folder(tokenizer))
        for text in (*PROBE, " " * 5 + "a", "<x> y", PROSE[:3000]):
            expected = [1, *model.encode(text)]
            assert tokenizer(text).input_ids == expected, text
            assert again(text).input_ids == expected, text
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template) == (1, 2, "x")


def test_tokens_that_were_added_to_a_sentencepiece_model_keep_their_ids(spm_model, llama):
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer.model").write_bytes(spm_model("llama").read_bytes())
    added = {"400": {"content": "<|im_start|>", "special": True}, "401": {"content": "<|x|>", "special": False}}
    filled = {token: {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False} | own
              for token, own in added.items()}  # fmt: skip
    settings = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": filled}
    (llama / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(resolve(str(llama)))
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|x|>"]) == [400, 401]
    assert tokenizer.all_special_tokens.count("<|x|>") == 0
    assert tokenizer("<|x|>", add_special_tokens=False).input_ids == [401]


@pytest.mark.skipif(not CASES.is_dir(), reason="without the folder of cases")
@pytest.mark.parametrize("name", ["tk_deepseek", "glm4", "g_sm", "base", "bosch"])
def test_cases(name):
    folder = str(CASES / "models" / name)
    check_ids(load_tokenizer(resolve(folder)), Tokenizer.from_file(f"{folder}/tokenizer.json"))
