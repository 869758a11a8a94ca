"""Builds the tokenizer of a GGUF file as llama.cpp does.

transformers reads the vocabulary of a GGUF. But it splits texts as GPT-2 does if it doesn't know the value of
`tokenizer.ggml.pre`, and it ignores `add_space_prefix`, words that no merge may divide, and special tokens that aren't
ASCII. So the tokenizer is built here from the vocabulary, the merges, the kinds of the tokens, and the splitting rule
that the file names. Anything that isn't known for certain is refused; the message names key and value.

Source of the rules: llama.cpp, `src/llama-vocab.cpp`. If llama.cpp only approximates the expression of the original
`tokenizer.json`, because its engine can't run it, the original is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from longeval.models.gguf.config import adds_bos
from longeval.models.gguf.header import GgufHeader
from longeval.models.tokenizer import NORMAL, UNSTATED, Pieces, add_special, backend_of

_KEY = "tokenizer.ggml."
_SPECIAL = {"bos_token": ("bos", 1), "eos_token": ("eos", 2), "unk_token": ("unknown", 0), "pad_token": ("padding", -1)}
"""transformers' name of each special token, its name in the file, and its default id in a sentencepiece vocabulary."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_LLAMA3 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{{1,3}}{_PUNCTUATION}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD}|\p{{N}}{_PUNCTUATION}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAPITALISED, _CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4O = rf"{_CAPITALISED}{_CONTRACTION}?|{_CAPITALS}{_CONTRACTION}?|\p{{N}}{{1,3}}{_SLASHES}"
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CASED = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ"
    "\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)  # fmt: skip
"""Letters with upper and lower case in DeepSeek's rule."""
_DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Rule(NamedTuple):
    """How a text is split for a byte-level vocabulary before merges are applied."""

    splits: tuple[str, ...]
    """Regular expressions, applied one after another. Each splits pieces into its matches and the text between them."""
    whole_words: bool = False
    """Whether a piece that is a token stays whole even if no merges produce it."""
    composes: bool = False
    """Whether the text is first normalised to NFC, as in the original `tokenizer.json`; llama.cpp doesn't do it."""


_RULES: tuple[tuple[Rule, str], ...] = (
    (Rule((_GPT2,)), "gpt-2 phi-2 gigachat a.x-4.0 mellum mpt olmo jais trillion granite-docling exaone4"),
    (Rule((r"\p{N}", _GPT2)), "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (Rule((_LLAMA3,), whole_words=True), "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2"),
    (Rule((_LLAMA3,)), "dbrx smaug-bpe chatglm-bpe glm4"),
    (Rule((_QWEN2,), composes=True), "qwen2"),
    (Rule((_QWEN2,)), "deepseek-r1-qwen kormo megrez stablelm2 hunyuan solar-open grok-2"),
    (Rule((_QWEN35,), composes=True), "qwen35"),
    (Rule((rf"{_CAPITALISED}|{_CAPITALS}|\p{{N}}{_SLASHES}",), whole_words=True), "tekken"),
    (Rule((_GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (Rule((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)), "tiny_aya cohere2moe"),
    (
        Rule(
            (
                "[\r\n]",
                rf"\s?[{_CASED}]+",
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                _HAN,
                r"\p{N}+",
            )
        ),
        "deepseek-llm",
    ),
    (Rule(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}")), "deepseek-coder"),
    (
        Rule((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)),
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    ),
    (Rule((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")), "falcon"),
    (Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")), "default"),
    (Rule((_BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (Rule((_BLOOM, r"\p{N}")), "viking"),
    (
        Rule((rf"'(?i:[sdmt]|ll|ve|re)|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",)),
        "bailingmoe bailingmoe2 llada-moe",
    ),
    (Rule((rf"{_CONTRACTION}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",)), "seed-coder"),
)

RULES: Mapping[str, Rule] = {name: rule for rule, names in _RULES for name in names.split()}
"""Splitting rules by the value of `tokenizer.ggml.pre`."""


def build_tokenizer(header: GgufHeader) -> Any:
    """Returns a file's tokenizer, a `PreTrainedTokenizerFast`.

    Raises:
        LongEvalError: The tokenizer isn't known for certain (the message names key and value), or its merges don't fit
            its vocabulary.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf.reader import read_gguf_metadata

    _check(header)
    arrays, _ = read_gguf_metadata(header.path, (f"{_KEY}tokens", f"{_KEY}merges"))
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(arrays[f"{_KEY}tokens"])]
    kinds = _stated(header, "token_type") or [NORMAL] * len(tokens)
    if len(set(tokens)) < len(tokens) or len(kinds) != len(tokens):
        raise header.refused(f"{_KEY}tokens", "it has duplicate tokens, or token_type has another length")
    build = _byte_level if _stated(header, "model") == "gpt2" else _sentencepiece
    try:
        backend = build(header, tokens, kinds, arrays.get(f"{_KEY}merges") or [])
    except Exception as error:  # tokenizers raises plain Exception
        raise header.refused(f"{_KEY}merges", str(error)) from error
    special = {name: _special_id(header, name) for name in _SPECIAL}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **({UNSTATED: True} if build is _byte_level and not _stated(header, "pre") else {}),
        **{name: tokens[index] for name, index in special.items() if index is not None and index < len(tokens)},
        chat_template=header.fields.get("tokenizer.chat_template"),
        add_bos_token=adds_bos(header),
        add_eos_token=bool(_stated(header, "add_eos_token")),
    )


def _stated(header: GgufHeader, key: str) -> Any:
    """The value of `tokenizer.ggml.<key>`, or None."""
    return header.fields.get(f"{_KEY}{key}")


def _rule_name(header: GgufHeader) -> str:
    """The name of the file's splitting rule; llama.cpp's default if the file names none."""
    return str(_stated(header, "pre") or "default")


def _check(header: GgufHeader) -> None:
    """Raises LongEvalError, naming key and value, if the tokenizer isn't known for certain."""
    kind, pre = _stated(header, "model"), _rule_name(header)
    if kind not in ("gpt2", "llama", "gemma4"):
        raise header.refused(f"{_KEY}model = {kind}", "supported are gpt2, llama and gemma4")
    if kind == "gpt2" and pre not in RULES:
        raise header.refused(f"{_KEY}pre = {pre}", "this splitting rule is unknown")
    if kind == "llama" and not _stated(header, "scores"):
        raise header.refused(f"{_KEY}scores", "it is missing, so the order of merges is unknown")


def _byte_level(header: GgufHeader, tokens: list[str], kinds: list[int], merges: list[str]) -> Any:
    """The `tokenizers.Tokenizer` of a byte-level vocabulary, with its special tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    rule = RULES[_rule_name(header)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, _pairs(merges, tokens), ignore_merges=rule.whole_words))
    if rule.composes:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), "isolated") for split in rule.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    add_special(tokenizer, tokens, kinds)
    return tokenizer


def _sentencepiece(header: GgufHeader, tokens: list[str], kinds: list[int], merges: list[str]) -> Any:
    """The `tokenizers.Tokenizer` of a sentencepiece vocabulary with byte fallback, with its special tokens."""
    from tokenizers import Regex, pre_tokenizers

    is_gemma4 = _stated(header, "model") == "gemma4"
    unknown = _special_id(header, "unk_token")
    prefix = _stated(header, "add_space_prefix")
    if prefix is None:
        prefix = not header.architecture.startswith("gemma")
    tokenizer = backend_of(
        Pieces(
            tokens=tokens,
            kinds=kinds,
            scores=_stated(header, "scores") or [0.0] * len(tokens),
            unknown=unknown if unknown is not None and unknown < len(tokens) else None,
            prefix=bool(prefix) and not is_gemma4,
            merges=_pairs(merges, tokens) if is_gemma4 else None,
        )
    )
    if is_gemma4:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("\n+"), "isolated")
    return tokenizer


def _special_id(header: GgufHeader, name: str) -> int | None:
    """The id of a special token, or None."""
    key, default = _SPECIAL[name]
    stated = _stated(header, f"{key}_token_id")
    if stated is None:
        stated = default if _stated(header, "model") == "llama" else -1
    return int(stated) if stated >= 0 else None


def _pairs(merges: list[str], tokens: list[str]) -> list[tuple[str, str]]:
    """Splits merges, which are stored as `left right`, into pairs; `left` may begin with a space."""
    pairs = [(merge[:cut], merge[cut + 1 :]) for merge in merges if (cut := merge.find(" ", 1)) > 0]
    known = set(tokens)
    if any(not {left, right, left + right} <= known for left, right in pairs):
        raise ValueError("they produce tokens that aren't in the vocabulary")
    return pairs
